"""CLIPStyler: which model and canvas styles better, and what each term buys.

    python -m benchmarks.clipstyler figure     # docs/figures/clipstyler.webp
    python -m benchmarks.clipstyler curve      # style against content, at several strengths
    python -m benchmarks.clipstyler terms      # with and without each of the paper's terms
    python -m benchmarks.clipstyler speed --steps 100    # whole processes at 256² and 512²

The photos come with scikit-image. The styles were chosen before any picture was made, among the
corpus' captions. The defaults were tuned on other photos and texts. Pictures are
kept under --work, and an interrupted run resumes.

The curve has two judges, and neither of them guided. Style: the similarity that the judge
(`benchmarks/judge.py`) finds of 24 crops and the whole picture to the style's caption, minus its
mean similarity to the other styles, minus the same difference for the photo. A change that is the
same for every text, such as noise, scores 0 on average over the styles. Content: the structural
similarity (SSIM, Wang et al. 2004) of the luminance to the photo's. It uses no network, and a
change of colours costs nothing.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from kornia.color import rgb_to_grayscale
from kornia.metrics import ssim
from torch import Tensor
from tqdm import tqdm

from clipag_plugins import views
from clipag_plugins.arguments import RunOptions
from clipag_plugins.hub import load_model
from clipag_plugins.integrations import clipstyler
from clipag_plugins.integrations.clipstyler import Losses
from clipag_plugins.pictures import read_square, save_png, to_pil
from clipag_plugins.sheet import sheet

from . import FIGURES, keep, keep_table
from .common import digest_of_package, save_figure
from .judge import SIDE, Judge

FIGURE = FIGURES / "clipstyler.webp"
# From scikit-image: NASA (public domain), Rachel Michetti (CC0), Stéfan van der Walt (CC0).
PHOTOS = ("astronaut", "coffee", "chelsea")
STYLES = ("fireworks", "water wave", "sunflower", "brick")
MODELS = {"clip-lite": "vanilla", "clipag-lite": "CLIPAG"}
CANVASES = {"pyramid": False, "network": True}
CROPS = 24
CELL = 112


def photo(name: str, side: int) -> Tensor:
    """Return the central square of one of scikit-image's photos, (3, side, side) in [0, 1]."""
    import skimage.data

    return read_square(Path(skimage.data.__file__).with_name(f"{name}.png"), side)


def styled(
    name: str, text: str, model: str, canvas: str, losses: Losses, options: argparse.Namespace
) -> Tensor:
    """Return a photo (3, side, side) in a style, from `options.work` if it was made before."""
    run = f"{model}-{digest_of_package()}-{options.side}-{options.steps}-{options.seed}"
    folder = options.work / run / canvas
    folder.mkdir(parents=True, exist_ok=True)
    terms = "-".join(str(value) for value in vars(losses).values())
    path = folder / f"{name}-{text}-{terms}.png"
    if not path.exists():
        ascent = clipstyler.style(
            photo(name, options.side), text, load_model(model), losses=losses,
            network=CANVASES[canvas], steps=options.steps, seed=options.seed,
            options=RunOptions(progress=False),
        )  # fmt: skip
        if ascent.interrupted:
            raise KeyboardInterrupt
        save_png(to_pil(ascent.images[0]), path, {})
    return read_square(path, options.side)


class StyleJudge:
    """The two judges of a styled photo."""

    def __init__(self) -> None:
        self.text_judge = Judge.load()

    def style(self, image: Tensor, text: str) -> float:
        """Return how much more similar an image (3, H, W) is to a style than to the others."""
        torch.manual_seed(0)  # the same crops for every picture
        crops = views.Views(1, CROPS, 0.4, 1.0, 0.0, 0.0, (1.0, 1.0), 0.0, 0.0, 0.0, 0.0)
        cropped, _ = crops(image[None], SIDE)
        similarity = self.text_judge.similarity(
            cropped[0], [text, *(style for style in STYLES if style != text)]
        )
        return (similarity[:, 0] - similarity[:, 1:].mean(dim=1)).mean().item()

    def judge(self, image: Tensor, before: Tensor, text: str) -> dict[str, float]:
        """Return the gain in style over the photo, and the SSIM to the photo."""
        grey, grey_before = (rgb_to_grayscale(x[None]) for x in (image, before))
        gain = self.style(image, text) - self.style(before, text)
        return {"style": gain, "content": ssim(grey, grey_before, 11).mean().item()}


def settings_of(options: argparse.Namespace) -> dict[str, object]:
    """Return the settings that all rows of a table have in common."""
    common = {key: vars(options)[key] for key in ("side", "steps", "patches", "seed")}
    return {"judge": Judge.name, **common}


def mean_of(
    judge: StyleJudge,
    pairs: list[tuple[str, str]],
    model: str,
    canvas: str,
    losses: Losses,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Style pairs of photo and text, and return the mean of each judge."""
    scores = []
    for name, text in tqdm(pairs, desc=f"{model} {canvas}", unit="picture", leave=False):
        image = styled(name, text, model, canvas, losses, options)
        scores.append(judge.judge(image, photo(name, options.side), text))
    return {key: math.fsum(score[key] for score in scores) / len(scores) for key in scores[0]}


def figure(options: argparse.Namespace) -> None:
    """Write the figure: a row for each photo and canvas, a column for each style and model."""
    losses = Losses(patches=options.patches)
    columns = [(text, model) for text in STYLES for model in MODELS]
    rows = {}
    for name, canvas in tqdm(list(product(PHOTOS[: options.photos], options.canvases)), unit="row"):
        images = [photo(name, options.side)] + [
            styled(name, text, model, canvas, losses, options) for text, model in columns
        ]
        rows[f"{name}, {canvas}"] = [to_pil(image).resize((CELL, CELL)) for image in images]
    titles = ["photo"] + [f"{text}: {MODELS[model]}" for text, model in columns]
    save_figure(FIGURE, sheet(list(rows.values()), titles, list(rows)))
    print(FIGURE)


def curve(options: argparse.Namespace) -> None:
    """Measure style against content at several strengths, for each model and canvas."""
    judge, rows = StyleJudge(), []
    pairs = [(name, text) for name in PHOTOS[: options.photos] for text in STYLES]
    for canvas in options.canvases:
        for model in MODELS:
            for strength in options.strengths:
                losses = Losses(patches=options.patches, strength=strength)
                row = {"canvas": canvas, "model": model, "strength": strength}
                rows.append({**row, **mean_of(judge, pairs, model, canvas, losses, options)})
                print(json.dumps(rows[-1]), flush=True)
    keep_table("clipstyler", settings_of(options), rows)


def terms(options: argparse.Namespace) -> None:
    """Measure the effect of each of the paper's terms: the defaults, and one change at a time."""
    judge, rows = StyleJudge(), []
    pairs = [(PHOTOS[0], text) for text in STYLES]
    defaults = Losses(patches=options.patches)
    changes = {
        "defaults": defaults,
        "no patches": replace(defaults, patches=0, whole=1.0),
        "no whole": replace(defaults, whole=0.0),
        "threshold 0.7": replace(defaults, threshold=0.7),
        "TV 1": replace(defaults, tv=1.0),
        "no content": replace(defaults, content_weight=0.0),
        "no templates": replace(defaults, templates=False),
    }
    for canvas in options.canvases:
        for model in MODELS:
            other = next(name for name in MODELS if name != model)
            swapped = {f"content by {other}": replace(defaults, content=other)}
            for name, losses in (changes | swapped).items():
                row = {"canvas": canvas, "model": model, "terms": name}
                rows.append({**row, **mean_of(judge, pairs, model, canvas, losses, options)})
                print(json.dumps(rows[-1]), flush=True)
    keep_table("clipstyler_terms", settings_of(options), rows)


def speed(options: argparse.Namespace) -> None:
    """Time whole processes and `import torch` beside them, and measure their peak memory."""
    figures: dict[str, float] = {"steps": options.steps}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        figures["import torch, s"] = round(time.perf_counter() - began, 1)
        for side in (256, 512):
            path = Path(folder) / f"{side}.png"
            to_pil(photo("astronaut", side)).save(path)
            for canvas in ("network", "no-network"):
                command = ["style", path, "fireworks", f"--{canvas}", "--steps", options.steps]
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "clipag_plugins", *map(str, command), "--out", folder],
                    check=True, capture_output=True,
                )  # fmt: skip
                seconds = time.perf_counter() - began
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                figures[f"{side} x {side}, {canvas}, s"] = round(seconds, 1)
                figures[f"{side} x {side}, {canvas}, processor s"] = round(busy, 1)
        figures["most memory, MB"] = round(after.ru_maxrss / 1024)
    keep("clipstyler_speed", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["figure", "curve", "terms", "speed"])
    parser.add_argument("--photos", type=int, default=len(PHOTOS), help="use this many")
    parser.add_argument("--side", type=int, default=160, help="the longer one")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--patches", type=int, default=16)
    parser.add_argument("--canvases", nargs="+", choices=CANVASES, default=[*CANVASES])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.25, 1.0, 4.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/clipstyler"))
    arguments = parser.parse_args()
    {"figure": figure, "curve": curve, "terms": terms, "speed": speed}[arguments.what](arguments)
