"""The PAG score of vanilla, smoothed and CLIPAG, by real pictures and by an independent judge.

    python -m benchmarks.pag pictures --work build/weights
    python -m benchmarks.pag sigma --work build/weights      # choose the smoothing
    python -m benchmarks.pag judge
    python -m benchmarks.pag sheet --work build/weights      # tests/held_out.png

`pictures` uses the first picture of each caption in the corpus' `test` split. `judge` uses the 200
prompts of two groups at five blobs each; the judge (`benchmarks/judge.py`) took no part in training
the models. `sigma` chose the smoothing among four strengths by the score on 100 pictures
of the `train` split, before any model was scored on held-out pictures.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from clipag_plugins.defaults import SIGMA
from clipag_plugins.evaluation.alignment import AlignmentSettings, pag_table
from clipag_plugins.evaluation.options import ComputeOptions
from clipag_plugins.evaluation.report import Report, compared
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.hub import load_model
from clipag_plugins.pag import judged_score
from clipag_plugins.pictures import save_png, to_pil, upright
from clipag_plugins.smoothing import smooth

from . import ROOT, keep_report
from .common import evenly, first_of_each
from .groups import prompts_of
from .judge import Judge

MODELS = ("clip-mini", "clipag-mini")
SIDE, ROUNDS, SAMPLES = 64, 5, 16
SIGMAS = (0.15, 0.3, 0.5, 1.0)
TRAINING_PICTURES = 100
FREE = ("fluent-emoji", "fluent-emoji-flat", "noto")  # sources that the repository may contain
SHEET = (8, 12)  # lines and columns of the sheet
CELL = 48  # pixels


def by_pictures(
    work: Path, split: str, count: int | None, sigmas: Sequence[float], seed: int, device: str
) -> Report:
    """Score both embedded models by pictures of a split, one for each caption."""
    pixels, pictures = corpus.load(work)
    chosen = evenly(first_of_each(pictures, split), count)
    folder = work / "pag" / split
    folder.mkdir(parents=True, exist_ok=True)
    for picture in chosen:
        image = upright(Image.fromarray(pixels[picture.index]))
        save_png(image, folder / f"{picture.index}.png", {"prompt": picture.caption})
    settings = AlignmentSettings(sigmas, SAMPLES, size=load_model().visual.native_size, seed=seed)
    prompts = [picture.caption for picture in chosen]
    return pag_table(folder, prompts, MODELS, settings, ComputeOptions(device))


def by_judge(seed: int) -> Report:
    """Score both embedded models, and the smoothed vanilla model, by the judge."""
    judge = Judge.load()
    texts = prompts_of("seen") + prompts_of("imagenet")
    vanilla = load_model("clip-mini")
    models = {
        "clip-mini": vanilla,
        f"clip-mini, smoothed by {SIGMA:g}": smooth(vanilla, SIGMA, SAMPLES),
        "clipag-mini": load_model("clipag-mini"),
    }
    scores = {
        name: judged_score(model, judge, texts * ROUNDS, SIDE, seed=seed)
        for name, model in models.items()
    }
    return Report(compared("PAG score", judge.name, scores))


def write_sheet(work: Path, path: Path) -> None:
    """Write held-out pictures for the tests, evenly among those whose licences permit it."""
    pixels, pictures = corpus.load(work)
    free = [picture for picture in first_of_each(pictures, "test") if picture.source in FREE]
    chosen = evenly(free, SHEET[0] * SHEET[1])
    rgba = torch.from_numpy(np.array([pixels[picture.index] for picture in chosen]))
    rgba = rgba.permute(0, 3, 1, 2) / 255
    on_white = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
    small = F.interpolate(on_white, size=(CELL, CELL), mode="bilinear", antialias=True)
    image = small.unflatten(0, SHEET).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    metadata = {
        "captions": "; ".join(picture.caption for picture in chosen),
        "source": "Fluent Emoji (Microsoft, MIT); Noto Emoji (Google, Apache-2.0)",
    }
    save_png(to_pil(image), path, metadata)


def main(options: argparse.Namespace) -> None:
    """Measure what was asked for, and keep it."""
    work, seed, device = options.work, options.seed, options.device
    if options.by == "sheet":
        write_sheet(work, ROOT / "tests" / "held_out.png")
    elif options.by == "judge":
        keep_report("pag_judge", by_judge(seed))
    elif options.by == "sigma":
        report = by_pictures(work, "train", TRAINING_PICTURES, SIGMAS, seed, device)
        keep_report("train/pag", report)
    else:
        keep_report("pag", by_pictures(work, "test", None, [SIGMA], seed, device))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("by", choices=["pictures", "sigma", "judge", "sheet"])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    main(parser.parse_args())
