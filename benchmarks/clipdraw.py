"""CLIPDraw judged by a model that did not guide: the paper's Table 1 on a small scale.

    python -m benchmarks.clipdraw                  # the whole table and the figure: hours
    python -m benchmarks.clipdraw --prompts 2      # the first 2 prompts, not kept

Draws the first 50 seen prompts with the vanilla and the CLIPAG tower, without and with the
notebook's augmentation and otherwise equal settings. The judge (`benchmarks/judge.py`) then chooses
the prompt of each drawing among all 100 (R-Prec; chance is 1 %), and that of the drawing blurred.
An interrupted run resumes. The figure shows the first prompts of the list, however their drawings
turned out.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from clipag_plugins.arguments import RunOptions
from clipag_plugins.ascent import Ascent
from clipag_plugins.base import ClipagModel
from clipag_plugins.hub import load_model
from clipag_plugins.integrations import clipdraw

from . import FIGURES, keep_table
from .common import digest_of_package, judged_twice, pictures_of, write_figure
from .groups import prompts_of
from .judge import Judge

PROMPTS, DRAWN_STROKES, DRAWN_STEPS = 50, 128, 100  # fewer than the defaults, to take less time
FIGURE = FIGURES / "clipdraw.webp"
# In the order of Table 1.
SETTINGS = [(name, augment) for augment in (False, True) for name in ("clip-lite", "clipag-lite")]


def drawn(
    model: ClipagModel, augment: bool, options: argparse.Namespace, prompts: list[str]
) -> Ascent:
    """Draw prompts with strokes."""
    return clipdraw.draw(
        prompts,
        model,
        steps=options.steps,
        seed=options.seed,
        drawing=clipdraw.Drawing(options.strokes),
        augment=augment,
        options=RunOptions(progress=False),
    )


def main(options: argparse.Namespace) -> None:
    """Draw, judge, and write table and figure."""
    judge, digest = Judge.load(), digest_of_package()
    candidates = prompts_of("seen")
    prompts = candidates[: options.prompts]
    rows, folders = [], []
    for name, augment in SETTINGS:
        run = f"{name}-{digest}-{options.strokes}-{options.steps}-{options.seed}"
        folder = options.work / run / ("augmentation" if augment else "no augmentation")
        folders.append(folder)
        model = load_model(name, torch.device(options.device))
        draw = partial(drawn, model, augment, options)
        images = pictures_of(draw, prompts, folder, {"seed": options.seed}, options.batch)
        row = {"model": name, "augmentation": "yes" if augment else "no"}
        rows.append({**row, **judged_twice(judge, images, candidates)})
        print(json.dumps(rows[-1]), flush=True)
    is_whole = options.prompts == PROMPTS
    write_figure(FIGURE if is_whole else options.work / FIGURE.name, prompts, folders)
    if is_whole:
        settings = {key: vars(options)[key] for key in ("prompts", "seed", "strokes", "steps")}
        keep_table("clipdraw", {"judge": judge.name, **settings}, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--strokes", type=int, default=DRAWN_STROKES)
    parser.add_argument("--steps", type=int, default=DRAWN_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=5, help="drawings at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("build/clipdraw"))
    main(parser.parse_args())
