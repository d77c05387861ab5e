"""Guidance quality, judged by a model that did not guide: the paper's Table 1 in small.

    python -m benchmarks.quality                     # the whole table: about half an hour
    python -m benchmarks.quality --prompts 20        # the first 20 prompts, printed and not kept
    python -m benchmarks.quality --seed 1            # another seed, the same
    python -m benchmarks.quality --seeds 5           # one try, the mean over the seeds 0 to 4
    python -m benchmarks.quality --no-memory         # one try by both models without their memory

Draws the 100 seen and the 100 unseen prompts with the vanilla and the CLIPAG tower, without
and with augmentation in one try, and as `clipag generate` does, in several, and asks the
independent evaluator which of the 100 prompts each picture shows (R-Prec; chance is 1 %). The
pictures that a single try starts from are judged too, so that nobody mistakes the start's share
for the guide's. Goes on where it stopped.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image

import clipag_plugins
from clipag_plugins import integrations
from clipag_plugins.arguments import RunOptions
from clipag_plugins.ascent import Ascent
from clipag_plugins.base import ClipagModel
from clipag_plugins.canvas import PixelCanvas
from clipag_plugins.embedded import read_config
from clipag_plugins.evaluation.drawing import draw_missing
from clipag_plugins.evaluation.metrics import similarities_and_ranks
from clipag_plugins.finetune.embedded.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.hub import load_model
from clipag_plugins.pictures import from_pil, read_picture
from clipag_plugins.sampler import sample, starting_images
from clipag_plugins.targets import text_target

from . import evaluator, keep_table
from .contact_sheet import write_sheet

BATCH = 10
SHOWN = 8  # prompts of a figure: the first, whatever became of them


def pictures_of(
    draw: Callable[[list[str]], Ascent],
    prompts: list[str],
    folder: Path,
    facts: dict[str, object],
    batch: int = BATCH,
) -> torch.Tensor:
    """Return (N, 3, H, W) pictures of the prompts, drawn now or found in `folder`."""
    draw_missing(draw, prompts, folder, facts, batch)
    found = [read_picture(path) for path in picture_paths(folder, len(prompts))]
    return torch.stack([from_pil(picture, picture.size) for picture in found])


def picture_paths(folder: Path, count: int) -> list[Path]:
    """Return the paths of the first pictures that `pictures_of` keeps in a folder."""
    return [folder / f"{number:05}.png" for number in range(count)]


def write_figure(path: Path, prompts: list[str], folders: list[Path]) -> None:
    """Show side by side what several folders of `pictures_of` have of the first prompts."""
    shown = prompts[:SHOWN]
    paths = [picture_paths(folder, len(shown)) for folder in folders]
    write_sheet(path, shown, [[Image.open(file) for file in row] for row in paths], columns=2)
    print(path)


def judged(judge: evaluator.Evaluator, images: torch.Tensor, every: list[str]) -> dict[str, float]:
    """Judge pictures of the first of `every` prompts; all of them are the candidates."""
    similarity, rank = similarities_and_ranks(
        judge.embed_images(images), judge.embed_texts(every), torch.arange(len(images))
    )
    return {
        "R-Prec": (rank == 0).float().mean().item(),
        "top 5": (rank < 5).float().mean().item(),
        "similarity": similarity.mean().item(),
    }


def digest_of_package() -> str:
    """Name the very weights and code that make a picture: no old one is judged as new."""
    made_by = hashlib.sha256(json.dumps(read_config(), sort_keys=True).encode())
    for package in (clipag_plugins, integrations):
        for source in sorted(Path(str(package.__file__)).parent.glob("*.py")):
            made_by.update(source.read_bytes())
    return made_by.hexdigest()[:12]


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
        every = read_concepts(SPLIT_FOLDER / f"{kind}.txt")
        for name in ("clip-mini", "clipag-mini"):
            model, known_as = load_model(name), name
            if not memory:
                text_tower: Any = model.text
                text_tower.memory, known_as = None, f"{name}, no memory"
            for setting in settings:
                folder = work / f"{known_as}-{digest}-{seed}" / kind / setting
                draw = partial(SETTINGS[setting], model, seed)
                images = pictures_of(draw, every[:count], folder, {"seed": seed})
                row: dict[str, Any] = {"prompts": kind, "model": known_as, "setting": setting}
                row |= judged(judge, images, every)
                print(json.dumps({"seed": seed, **row}), flush=True)
                yield row


def over_seeds(tables: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the mean of tables that differ in their seed."""
    return [
        {
            column: fmean(row[column] for row in rows) if isinstance(value, float) else value
            for column, value in rows[0].items()
        }
        for rows in zip(*tables, strict=True)
    ]


def starts(model: ClipagModel, seed: int, prompts: list[str]) -> Ascent:
    """Return what the ascents would start from."""
    targets = [text_target(model, prompt) for prompt in prompts]
    images = starting_images("gmm", targets, model, 224, seed)[:, 0]
    return Ascent(images, torch.zeros(len(images)), PixelCanvas(images))


def drawn(
    views: int | None, tries: int | None, model: ClipagModel, seed: int, prompts: list[str]
) -> Ascent:
    """Draw prompts by pixel ascent."""
    return sample(
        prompts, model, views=views, tries=tries, seed=seed, options=RunOptions(progress=False)
    )


SETTINGS: dict[str, Callable[[ClipagModel, int, list[str]], Ascent]] = {
    "start only": starts,
    "no augmentation": partial(drawn, 1, 1),
    "augmentation": partial(drawn, None, 1),
    "defaults": partial(drawn, None, None),
}
ONE_TRY = ("no augmentation", "augmentation")


def main(options: argparse.Namespace) -> None:
    """Make the table, or one of single tries."""
    judge, rest = evaluator.load(), (options.prompts, options.work)
    name, facts = "quality", {"seed": options.seed}
    if options.seeds:
        tables = [[*table(judge, ONE_TRY, seed, *rest)] for seed in range(options.seeds)]
        name, facts, rows = "quality_seeds", {"seeds": options.seeds}, over_seeds(tables)
    elif options.no_memory:
        name, rows = "quality_no_memory", [*table(judge, ONE_TRY, options.seed, *rest, False)]
    else:
        rows = [*table(judge, SETTINGS, options.seed, *rest)]
    if options.prompts == 100 and not options.seed:
        keep_table(name, facts, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=100)
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--seed", type=int, default=0)
    of.add_argument("--seeds", type=int, metavar="N")
    of.add_argument("--no-memory", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    main(parser.parse_args())
