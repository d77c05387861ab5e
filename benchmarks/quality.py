"""Guidance quality, judged by a model that did not guide: the paper's Table 1 on a small scale.

    python -m benchmarks.quality                     # the whole table: about two hours
    python -m benchmarks.quality --groups seen --models clipag-mini     # a part of it
    python -m benchmarks.quality --prompts 20        # the first 20 prompts, printed and not kept
    python -m benchmarks.quality --seed 1            # another seed, printed and not kept
    python -m benchmarks.quality --seeds 5           # one try, the mean over the seeds 0 to 4
    python -m benchmarks.quality --no-memory         # one try by both models without their memory

Draws the prompts of four groups (`benchmarks.judge.prompts_of`) with the vanilla and the CLIPAG
tower: in one try without and with augmentation, and in several tries as `clipag generate` does. The
judge then chooses the prompt of each picture among those of its group (R-Prec; chance is 1 %, and
2 % for sentences). It judges the picture blurred to 48 pixels as well, where grain cannot sway it:
a gradient that only fools networks of the judge's kind draws grain. For names of ImageNet's classes
its classifier, which was fitted on nothing of ours, chooses too. The starts of a single try are
judged as well: they show which part of the score the guide did not contribute. A part of the table
replaces that part of the kept file. An interrupted run resumes.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from clipag_plugins.arguments import RunOptions
from clipag_plugins.ascent import Ascent
from clipag_plugins.base import ClipagModel
from clipag_plugins.canvas import PixelCanvas
from clipag_plugins.defaults import SIDE
from clipag_plugins.hub import load_model
from clipag_plugins.sampler import sample, settings_for, starting_images
from clipag_plugins.targets import text_target

from . import RESULTS, keep_table
from .common import digest_of_package, judged_twice, pictures_of, r_precision
from .groups import prompts_of
from .judge import Judge

GROUPS = ("seen", "imagenet", "neither", "sentences")
MODELS = ("clip-mini", "clipag-mini")


@dataclass(frozen=True)
class Part:
    """A part of the table: every combination of these.

    Attributes:
        groups: of prompts.
        models: that draw.
        settings: keys of `SETTINGS`.
        prompts: how many of each group are drawn, the first ones.
    """

    groups: tuple[str, ...] = GROUPS
    models: tuple[str, ...] = MODELS
    settings: tuple[str, ...] = ("start only", "no augmentation", "augmentation", "defaults")
    prompts: int = 100


def table(
    judge: Judge, part: Part, seed: int, work: Path, memory: bool = True
) -> Iterator[dict[str, Any]]:
    """Draw a part's prompts, judge the pictures, and yield the rows."""
    digest = digest_of_package()
    for group, name in product(part.groups, part.models):
        candidates = prompts_of(group)
        model, title = load_model(name), name
        if not memory:
            text_tower: Any = model.text
            text_tower.memory, title = None, f"{name}, no memory"
        for setting in part.settings:
            folder = work / f"{title}-{digest}-{seed}" / group / setting
            draw = partial(SETTINGS[setting], model, seed)
            images = pictures_of(draw, candidates[: part.prompts], folder, {"seed": seed})
            row: dict[str, Any] = {"prompts": group, "model": title, "setting": setting}
            row |= judged_twice(judge, images, candidates)
            if group == "imagenet":
                by_classifier = r_precision(judge.classes(images, candidates))
                row |= {f"classifier: {key}": value for key, value in by_classifier.items()}
            print(json.dumps({"seed": seed, **row}), flush=True)
            yield row


def with_other_parts(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows together with those of the kept file that they do not replace."""
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    keys = ("prompts", "model", "setting")
    new = {tuple(row[key] for key in keys) for row in rows}
    others = kept["rows"] if kept.get("judge") == Judge.name else []
    together = rows + [row for row in others if tuple(row[key] for key in keys) not in new]
    return sorted(
        together,
        key=lambda row: (
            GROUPS.index(row["prompts"]),
            row["model"],
            [*SETTINGS].index(row["setting"]),
        ),
    )


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
    """Make the whole table, a part of it, or a table of single tries."""
    judge, name, work = Judge.load(), "quality", options.work
    part = Part(
        tuple(options.groups), tuple(options.models), tuple(options.settings), options.prompts
    )
    run = {"judge": judge.name, "seed": options.seed}
    if options.seeds:
        name, run = "quality_seeds", {"judge": judge.name, "seeds": options.seeds}
        part = replace(part, settings=ONE_TRY)
        rows = mean_over_seeds([[*table(judge, part, s, work)] for s in range(options.seeds)])
    elif options.no_memory:
        name, part = "quality_no_memory", replace(part, settings=ONE_TRY)
        rows = [*table(judge, part, options.seed, work, memory=False)]
    else:
        rows = [*table(judge, part, options.seed, work)]
    if options.prompts == Part.prompts and not options.seed:
        keep_table(name, run, with_other_parts(name, rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=Part.prompts)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names that `load_model` takes")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=Part.settings)
    variant = parser.add_mutually_exclusive_group()
    variant.add_argument("--seed", type=int, default=0)
    variant.add_argument("--seeds", type=int, metavar="N")
    variant.add_argument("--no-memory", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    main(parser.parse_args())
