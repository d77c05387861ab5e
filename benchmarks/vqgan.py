"""VQGAN+CLIP with the embedded weights: where a step's time goes, and who guides better.

    python -m benchmarks.vqgan                   # the time of a drawing, and of a step's parts
    python -m benchmarks.vqgan --prompts 50 --steps 60 --side 96     # the table: an hour

The parts of a step are timed separately, each with its backward pass, in the same run as the whole
step. The judge is that of `benchmarks.quality`: both models draw the seen captions with equal
settings, and all 100 captions are the candidates.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from clipag_plugins.arguments import RunOptions
from clipag_plugins.ascent import Ascent
from clipag_plugins.base import ClipagModel, normalize
from clipag_plugins.defaults import VQGAN_STEPS
from clipag_plugins.hub import load_model
from clipag_plugins.integrations import vqgan
from clipag_plugins.integrations.vqgan.canvas import EMBEDDED_SETTINGS
from clipag_plugins.integrations.vqgan.cutouts import Cutouts
from clipag_plugins.integrations.vqgan.weights import load_vqgan

from . import FIGURES, keep, keep_table
from .common import digest_of_package, judged_twice, pictures_of, write_figure
from .groups import prompts_of
from .judge import Judge

FIGURE = FIGURES / "vqgan.webp"
PROMPTS = 50  # the fewest that make the table and the figure
REPEATS = 10


def seconds(compute: Callable[[], torch.Tensor]) -> float:
    """Return the mean time of a computation with its backward pass, after one to warm up."""
    compute().sum().backward()
    began = time.perf_counter()
    for _ in range(REPEATS):
        compute().sum().backward()
    return (time.perf_counter() - began) / REPEATS


def timed(options: argparse.Namespace) -> None:
    """Time a drawing and a step's parts."""
    steps, side = options.steps, options.side
    model, drawing, views = load_model(), load_vqgan(), Cutouts(options.views)
    draw = partial(
        vqgan.draw,
        "a green frog",
        model,
        drawing,
        size=(side, side),
        settings=replace(EMBEDDED_SETTINGS, views=views),
        options=RunOptions(progress=False),
    )
    draw(steps=1)
    began = time.perf_counter()
    draw(steps=steps)
    whole = time.perf_counter() - began

    canvas = vqgan.VqganCanvas(drawing, vqgan.starting_latent(drawing, (side, side)))
    images = canvas.render().detach().requires_grad_(True)
    native = model.visual.native_size
    cutouts = views(images, native)[0][0].detach().requires_grad_(True)
    parts = {
        "decode": seconds(canvas.render),
        "views": seconds(lambda: views(images, native)[0]),
        "tower": seconds(lambda: model.encode_image(normalize(cutouts))),
    }
    figures = {
        f"{steps} steps at {side} x {side}, s": round(whole, 1),
        "a step, ms": round(1000 * whole / steps),
        **{f"{name}, ms": round(1000 * part) for name, part in parts.items()},
        "step / parts": round(whole / steps / sum(parts.values()), 2),
        "views": views.count,
        "threads": torch.get_num_threads(),
    }
    keep("vqgan_speed", figures)


def drawn(
    model: ClipagModel, drawing: nn.Module, options: argparse.Namespace, prompts: list[str]
) -> Ascent:
    """Draw a prompt with a VQGAN."""
    (prompt,) = prompts
    return vqgan.draw(
        prompt,
        model,
        drawing,
        steps=options.steps,
        size=(options.side, options.side),
        seed=options.seed,
        settings=replace(EMBEDDED_SETTINGS, views=Cutouts(options.views)),
        options=RunOptions(progress=False),
    )


def compare(options: argparse.Namespace) -> None:
    """Draw with both models, judge, and write table and figure."""
    judge, digest = Judge.load(), digest_of_package()
    candidates = prompts_of("seen")
    prompts = candidates[: options.prompts]
    rows, folders = [], []
    for name in ("clip-lite", "clipag-lite"):
        settings = f"{options.steps}-{options.side}-{options.views}-{options.seed}"
        folder = options.work / f"{name}-{digest}-{settings}"
        folders.append(folder)
        draw = partial(drawn, load_model(name), load_vqgan(), options)
        images = pictures_of(draw, prompts, folder, {"seed": options.seed}, batch=1)
        rows.append({"model": name, **judged_twice(judge, images, candidates)})
        print(json.dumps(rows[-1]), flush=True)
    is_whole = options.prompts >= PROMPTS
    write_figure(FIGURE if is_whole else options.work / FIGURE.name, prompts, folders)
    if is_whole:
        run = {key: vars(options)[key] for key in ("prompts", "seed", "steps", "side", "views")}
        keep_table("vqgan", {"judge": judge.name, **run}, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, help="judge this many seen captions, up to 100")
    parser.add_argument("--steps", type=int, default=VQGAN_STEPS)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--views", type=int, default=EMBEDDED_SETTINGS.views.count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/vqgan"))
    options = parser.parse_args()
    if options.prompts is None:
        timed(options)
    else:
        compare(options)
