"""VQGAN+CLIP with the embedded weights: where a step's time goes, and who guides better.

    python -m benchmarks.vqgan                   # the time of a drawing, and of a step's parts
    python -m benchmarks.vqgan --prompts 100     # R-Prec of clip-mini and clipag-mini: hours

The parts are timed alone, each with its own backward pass, and are the named peers of the whole
step in the same run. The evaluator judges as in `benchmarks.quality`: both models draw the seen
captions with equal settings, and all 100 captions are the candidates.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clipag_plugins.finetune.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.integrations import vqgan
from clipag_plugins.integrations.cutouts import Cutouts
from clipag_plugins.integrations.vqgan_weights import load_vqgan
from clipag_plugins.model import load_clipag, normalize
from clipag_plugins.sampler import save_png, to_pil

from . import evaluator
from .quality import judged

REPEATS = 10


def seconds(work: Callable[[], torch.Tensor]) -> float:
    """Time something and its backward pass, after one time that does not count."""
    work().sum().backward()
    began = time.perf_counter()
    for _ in range(REPEATS):
        work().sum().backward()
    return (time.perf_counter() - began) / REPEATS


def timed(steps: int, side: int) -> None:
    """Print the time of a drawing and of a step's parts as JSON."""
    model, drawing, views = load_clipag(), load_vqgan(), Cutouts()
    vqgan.draw("a green frog", model, drawing, steps=1, size=(side, side), progress=False)
    began = time.perf_counter()
    vqgan.draw("a green frog", model, drawing, steps=steps, size=(side, side), progress=False)
    whole = time.perf_counter() - began

    canvas = vqgan.VqganCanvas(drawing, vqgan.starting_latent(drawing, (side, side)))
    images = canvas.render().detach().requires_grad_(True)
    native = model.visual.native_size
    seen = views(images, native)[0][0].detach().requires_grad_(True)
    parts = {
        "decode": seconds(canvas.render),
        "views": seconds(lambda: views(images, native)[0]),
        "tower": seconds(lambda: model.encode_image(normalize(seen))),
    }
    figures = {
        f"{steps} steps at {side} x {side}, s": round(whole, 1),
        "a step, ms": round(1000 * whole / steps),
        **{f"{name}, ms": round(1000 * part) for name, part in parts.items()},
        "step / parts": round(whole / steps / sum(parts.values()), 2),
        "views": views.count,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures, indent=1))


def compare(count: int, steps: int, side: int, seed: int, work: Path) -> None:
    """Draw the first `count` seen captions with both models, and print what the judge says."""
    judge, drawing = evaluator.load(), load_vqgan()
    every = read_concepts(SPLIT_FOLDER / "seen.txt")
    for name in ("clip-mini", "clipag-mini"):
        model, folder = load_clipag(name), work / f"{name}-{steps}-{side}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        images = []
        for prompt in every[:count]:
            ascent = vqgan.draw(
                prompt, model, drawing, steps=steps, size=(side, side), seed=seed, progress=False
            )
            if ascent.interrupted:
                raise KeyboardInterrupt
            save_png(to_pil(ascent.images[0]), folder / f"{prompt}.png", {})
            images.append(ascent.images[0])
        row = {"model": name, **judged(judge, torch.stack(images), every)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, help="judge this many of the 100 seen captions")
    parser.add_argument("--steps", type=int, default=vqgan.STEPS)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/vqgan"))
    options = parser.parse_args()
    if options.prompts is None:
        timed(options.steps, options.side)
    else:
        compare(options.prompts, options.steps, options.side, options.seed, options.work)
