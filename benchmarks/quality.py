"""Guidance quality, judged by a model that did not guide: the paper's Table 1 on a small scale.

    python -m benchmarks.quality                     # the whole table: about half an hour
    python -m benchmarks.quality --prompts 20        # the first 20 prompts, printed and not kept
    python -m benchmarks.quality --seed 1            # another seed, printed and not kept
    python -m benchmarks.quality --seeds 5           # one try, the mean over the seeds 0 to 4
    python -m benchmarks.quality --no-memory         # one try by both models without their memory

Draws the 100 seen and the 100 unseen prompts with the vanilla and the CLIPAG tower: in one try
without and with augmentation, and in several tries as `clipag generate` does. The independent
evaluator then chooses the prompt of each picture among the 100 (R-Prec; chance is 1 %). The starts
of a single try are judged too: they show which part of the score the guide did not contribute. An
interrupted run resumes.
"""

import argparse
import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from clipag_plugins.arguments import RunOptions
from clipag_plugins.ascent import Ascent
from clipag_plugins.base import ClipagModel
from clipag_plugins.canvas import PixelCanvas
from clipag_plugins.defaults import SIDE
from clipag_plugins.finetune.embedded.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.hub import load_model
from clipag_plugins.sampler import sample, settings_for, starting_images
from clipag_plugins.targets import text_target

from . import evaluator, keep_table
from .common import digest_of_package, judged, pictures_of


def table(
    judge: evaluator.Evaluator,
    settings: Collection[str],
    seed: int,
    count: int,
    work: Path,
    memory: bool = True,
) -> Iterator[dict[str, Any]]:
    """Draw the first `count` prompts of both lists with both models, judge, and yield the rows."""
    digest = digest_of_package()
    for kind in ("seen", "unseen"):
        candidates = read_concepts(SPLIT_FOLDER / f"{kind}.txt")
        for name in ("clip-mini", "clipag-mini"):
            model, title = load_model(name), name
            if not memory:
                text_tower: Any = model.text
                text_tower.memory, title = None, f"{name}, no memory"
            for setting in settings:
                folder = work / f"{title}-{digest}-{seed}" / kind / setting
                draw = partial(SETTINGS[setting], model, seed)
                images = pictures_of(draw, candidates[:count], folder, {"seed": seed})
                row: dict[str, Any] = {"prompts": kind, "model": title, "setting": setting}
                row |= judged(judge, images, candidates)
                print(json.dumps({"seed": seed, **row}), flush=True)
                yield row


def mean_over_seeds(tables: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the mean of tables that differ in their seed."""
    return [
        {
            column: fmean(row[column] for row in rows) if isinstance(value, float) else value
            for column, value in rows[0].items()
        }
        for rows in zip(*tables, strict=True)
    ]


def starts(model: ClipagModel, seed: int, prompts: list[str]) -> Ascent:
    """Return the starting images of the ascents, without any update."""
    targets = [text_target(model, prompt) for prompt in prompts]
    images = starting_images("gmm", targets, model, SIDE, seed)[:, 0]
    return Ascent(images, torch.zeros(len(images)), PixelCanvas(images))


def drawn(
    views: int | None, tries: int | None, model: ClipagModel, seed: int, prompts: list[str]
) -> Ascent:
    """Draw prompts by pixel ascent."""
    settings = settings_for(model, views=views, tries=tries)
    return sample(prompts, model, settings, seed=seed, options=RunOptions(progress=False))


SETTINGS: dict[str, Callable[[ClipagModel, int, list[str]], Ascent]] = {
    "start only": starts,
    "no augmentation": partial(drawn, 1, 1),
    "augmentation": partial(drawn, None, 1),
    "defaults": partial(drawn, None, None),
}
ONE_TRY = ("no augmentation", "augmentation")


def main(options: argparse.Namespace) -> None:
    """Make the whole table, or a table of single tries."""
    judge, rest = evaluator.load(), (options.prompts, options.work)
    name, run = "quality", {"seed": options.seed}
    if options.seeds:
        tables = [[*table(judge, ONE_TRY, seed, *rest)] for seed in range(options.seeds)]
        name, run, rows = "quality_seeds", {"seeds": options.seeds}, mean_over_seeds(tables)
    elif options.no_memory:
        name, rows = "quality_no_memory", [*table(judge, ONE_TRY, options.seed, *rest, False)]
    else:
        rows = [*table(judge, SETTINGS, options.seed, *rest)]
    if options.prompts == 100 and not options.seed:
        keep_table(name, run, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=100)
    variant = parser.add_mutually_exclusive_group()
    variant.add_argument("--seed", type=int, default=0)
    variant.add_argument("--seeds", type=int, metavar="N")
    variant.add_argument("--no-memory", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    main(parser.parse_args())
