"""CLIPStyler: which model and canvas styles better, and what each term buys.

    python -m benchmarks.clipstyler figure     # examples/clipstyler.png
    python -m benchmarks.clipstyler curve      # style against content, over several strengths
    python -m benchmarks.clipstyler terms      # each of the paper's terms left out, or put in
    python -m benchmarks.clipstyler speed --steps 100    # 256² and 512², a whole process each

The photos come with scikit-image. The styles were chosen before a picture was made, among the
captions that the evaluator knows; defaults were tuned on other photos and texts. Pictures are kept
under --work, and a run goes on where it stopped.

The curve has two judges, neither of which guided. Style: the independent evaluator's similarity of
24 crops and the whole picture to the style's caption, less its mean similarity to the other styles'
and less the same of the photo. A change that is the same for every text, noise for example, scores
0 on average over the styles. Content: the structural similarity (SSIM, Wang et al. 2004) of
luminance to the photo's, which knows no network: a style may change all colours and lose nothing.
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
from clipag_plugins.files import write_beside
from clipag_plugins.hub import load_model
from clipag_plugins.integrations import clipstyler
from clipag_plugins.integrations.clipstyler import Losses
from clipag_plugins.pictures import read_square, save_png, to_pil
from clipag_plugins.sheet import sheet

from . import evaluator, keep, keep_table
from .quality import digest_of_package

FIGURE = Path("examples/clipstyler.png")
# NASA, public domain; Rachel Michetti, CC0; Stéfan van der Walt, CC0: all in scikit-image's wheel.
PHOTOS = ("astronaut", "coffee", "chelsea")
STYLES = ("fireworks", "water wave", "sunflower", "brick")
MODELS = {"clip-mini": "vanilla", "clipag-mini": "CLIPAG"}
CANVASES = {"network": True, "pixels": False}
CROPS = 24
CELL = 112


def photo(name: str, side: int) -> Tensor:
    """Return the middle square of a photo of scikit-image's, (3, side, side) in [0, 1]."""
    import skimage.data

    return read_square(Path(skimage.data.__file__).with_name(f"{name}.png"), side)


def styled(
    name: str, text: str, model: str, canvas: str, losses: Losses, options: argparse.Namespace
) -> Tensor:
    """Return a photo (3, side, side) in a style, made now or found in `options.work`."""
    run = f"{model}-{digest_of_package()}-{options.side}-{options.steps}-{options.seed}"
    folder = options.work / run / canvas
    folder.mkdir(parents=True, exist_ok=True)
    terms = "-".join(str(value) for value in vars(losses).values())
    path = folder / f"{name}-{text}-{terms}.png"
    if not path.exists():
        ascent = clipstyler.style(
            photo(name, options.side), text, load_model(model), losses=losses,
            network=CANVASES[canvas], steps=options.steps, seed=options.seed, progress=False,
        )  # fmt: skip
        if ascent.interrupted:
            raise KeyboardInterrupt
        save_png(to_pil(ascent.images[0]), path, {})
    return read_square(path, options.side)


class Judge:
    """The two judges of a styled photo."""

    def __init__(self) -> None:
        self.evaluator = evaluator.load()

    def style(self, image: Tensor, text: str) -> float:
        """Return how much nearer crops and the whole of (3, H, W) are to a style than to others."""
        torch.manual_seed(0)  # the same crops of every picture
        crops = views.Views(1, CROPS, 0.4, 1.0, 0.0, 0.0, (1.0, 1.0), 0.0, 0.0, 0.0, 0.0)
        looks, _ = crops(image[None], evaluator.SIDE)
        near = self.evaluator.similarity(looks[0], [text, *(s for s in STYLES if s != text)])
        return (near[:, 0] - near[:, 1:].mean(dim=1)).mean().item()

    def judge(self, image: Tensor, before: Tensor, text: str) -> dict[str, float]:
        """Return how much nearer the style is than in the photo, and how much content is left."""
        grey, grey_before = (rgb_to_grayscale(x[None]) for x in (image, before))
        gain = self.style(image, text) - self.style(before, text)
        return {"style": gain, "content": ssim(grey, grey_before, 11).mean().item()}


def settings_of(options: argparse.Namespace) -> dict[str, object]:
    """Return the settings that all of a table's rows have."""
    return {key: vars(options)[key] for key in ("side", "steps", "patches", "seed")}


def mean_of(
    judge: Judge,
    pairs: list[tuple[str, str]],
    model: str,
    canvas: str,
    losses: Losses,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Style photos with texts, pair by pair, and return the judges' means."""
    found = []
    for name, text in tqdm(pairs, desc=f"{model} {canvas}", unit="picture", leave=False):
        image = styled(name, text, model, canvas, losses, options)
        found.append(judge.judge(image, photo(name, options.side), text))
    return {key: math.fsum(row[key] for row in found) / len(found) for key in found[0]}


def figure(options: argparse.Namespace) -> None:
    """Write the figure: a row a photo and canvas, a column a style and model."""
    losses = Losses(patches=options.patches)
    columns = [(text, model) for text in STYLES for model in MODELS]
    rows = {}
    for name, canvas in tqdm(list(product(PHOTOS[: options.photos], CANVASES)), unit="row"):
        images = [photo(name, options.side)] + [
            styled(name, text, model, canvas, losses, options) for text, model in columns
        ]
        rows[f"{name}, {canvas}"] = [to_pil(image).resize((CELL, CELL)) for image in images]
    titles = ["photo"] + [f"{text}: {MODELS[model]}" for text, model in columns]
    with write_beside(FIGURE) as temporary:
        sheet(list(rows.values()), titles, list(rows)).save(temporary, optimize=True)
    print(FIGURE)


def curve(options: argparse.Namespace) -> None:
    """Write style against content over strengths, each model and canvas."""
    judge, rows = Judge(), []
    pairs = [(name, text) for name in PHOTOS[: options.photos] for text in STYLES]
    for canvas in CANVASES:
        for model in MODELS:
            for strength in options.strengths:
                losses = Losses(patches=options.patches, strength=strength)
                facts = {"canvas": canvas, "model": model, "strength": strength}
                rows.append({**facts, **mean_of(judge, pairs, model, canvas, losses, options)})
                print(json.dumps(rows[-1]), flush=True)
    keep_table("clipstyler", settings_of(options), rows)


def terms(options: argparse.Namespace) -> None:
    """Write what each of the paper's terms buys: the defaults, and one change at a time."""
    judge, rows = Judge(), []
    pairs = [(PHOTOS[0], text) for text in STYLES]
    usual = Losses(patches=options.patches)
    changes = {
        "defaults": usual,
        "no patches": replace(usual, patches=0, whole=1.0),
        "no whole": replace(usual, whole=0.0),
        "threshold 0.7": replace(usual, threshold=0.7),
        "TV 1": replace(usual, tv=1.0),
        "no content": replace(usual, content_weight=0.0),
        "no templates": replace(usual, templates=False),
    }
    for canvas in CANVASES:
        for model in MODELS:
            other = next(name for name in MODELS if name != model)
            twin = {f"content by {other}": replace(usual, content=other)}
            for name, losses in (changes | twin).items():
                facts = {"canvas": canvas, "model": model, "terms": name}
                rows.append({**facts, **mean_of(judge, pairs, model, canvas, losses, options)})
                print(json.dumps(rows[-1]), flush=True)
    keep_table("clipstyler_terms", settings_of(options), rows)


def speed(options: argparse.Namespace) -> None:
    """Time whole processes beside `import torch`, and measure their most memory."""
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
    parser.add_argument("--photos", type=int, default=len(PHOTOS), help="the first so many")
    parser.add_argument("--side", type=int, default=160, help="the longer one")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--patches", type=int, default=16)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.25, 1.0, 4.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/clipstyler"))
    arguments = parser.parse_args()
    {"figure": figure, "curve": curve, "terms": terms, "speed": speed}[arguments.what](arguments)
