"""The PAG score of vanilla, smoothed and CLIPAG, by real pictures and by an independent judge.

    python -m benchmarks.pag pictures --work build/weights
    python -m benchmarks.pag sigma --work build/weights      # which smoothing, on training pictures
    python -m benchmarks.pag judge
    python -m benchmarks.pag sheet --work build/weights      # tests/held_out.png

By pictures: the first picture of each caption in the corpus' `test` split, which `clipag eval pag`
scores. By the judge (`judged_score`): the 200 seen and unseen captions, each at five blobs, and the
evaluator, which had no part in any of the models. The smoothing was chosen among four strengths by
the score on 100 pictures of the `train` split, before any was scored on held-out ones.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from clipag_plugins.cli import main as clipag
from clipag_plugins.defaults import SIGMA
from clipag_plugins.evaluation.report import Report, compared
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.embedded.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.hub import load_model
from clipag_plugins.pag import judged_score
from clipag_plugins.pictures import save_png, to_pil, upright
from clipag_plugins.smoothing import smooth

from . import RESULTS, evaluator

SIDE, ROUNDS, SAMPLES = 64, 5, 16
SIGMAS = (0.15, 0.3, 0.5, 1.0)
FREE = ("fluent-emoji", "fluent-emoji-flat", "noto")


def first_of_each(rows: Sequence[corpus.Picture], split: str) -> list[corpus.Picture]:
    """Return the first picture of each caption in a split, in the corpus' order."""
    first = {row.caption: row for row in reversed(rows) if row.split == split}
    return sorted(first.values(), key=lambda row: row.index)


def evenly(rows: list[corpus.Picture], count: int | None) -> list[corpus.Picture]:
    """Return so many rows from all over the corpus, which is sorted by source; by default all."""
    return rows if count is None else rows[:: max(1, len(rows) // count)][:count]


def by_pictures(work: Path, split: str, count: int | None, more: Sequence[str]) -> int:
    """Have `clipag eval pag` score both embedded models by pictures of a split."""
    pixels, rows = corpus.load(work)
    chosen = evenly(first_of_each(rows, split), count)
    folder = work / "pag" / split
    folder.mkdir(parents=True, exist_ok=True)
    for row in chosen:
        picture = upright(Image.fromarray(pixels[row.index]))
        save_png(picture, folder / f"{row.index}.png", {"prompt": row.caption})
    prompts = folder / "captions.txt"
    prompts.write_text("".join(f"{row.caption}\n" for row in chosen), encoding="utf-8")
    side = load_model().visual.native_size
    return clipag(
        ["eval", "pag", str(folder), "--prompts", str(prompts), "--size", str(side),
         "--samples", str(SAMPLES), *more]
    )  # fmt: skip


def by_judge(seed: int) -> None:
    """Score the models by the evaluator."""
    judge = evaluator.load()
    texts = [t for kind in ("seen", "unseen") for t in read_concepts(SPLIT_FOLDER / f"{kind}.txt")]
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
    report = Report(compared("PAG score", judge.name, scores))
    report.write(RESULTS, "pag_judge")
    print(report.table())


def write_sheet(work: Path, path: Path) -> None:
    """Write 96 held-out pictures of 48 × 48, evenly among those whose licences permit it."""
    pixels, rows = corpus.load(work)
    chosen = evenly([row for row in first_of_each(rows, "test") if row.source in FREE], 96)
    rgba = torch.from_numpy(np.array([pixels[row.index] for row in chosen]))
    rgba = rgba.permute(0, 3, 1, 2) / 255
    on_white = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
    small = F.interpolate(on_white, size=(48, 48), mode="bilinear", antialias=True)
    image = small.unflatten(0, (8, 12)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    facts = {
        "captions": "; ".join(row.caption for row in chosen),
        "source": "Fluent Emoji (Microsoft, MIT); Noto Emoji (Google, Apache-2.0)",
    }
    save_png(to_pil(image), path, facts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("by", choices=["pictures", "sigma", "judge", "sheet"])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.by == "sheet":
        write_sheet(options.work, Path("tests/held_out.png"))
    elif options.by == "judge":
        by_judge(options.seed)
    elif options.by == "sigma":
        kept = ["--out", str(RESULTS / "train"), "--seed", str(options.seed)]
        sigmas = ["--sigma", *map(str, SIGMAS)]
        sys.exit(by_pictures(options.work, "train", 100, [*kept, *sigmas]))
    else:
        kept = ["--out", str(RESULTS), "--seed", str(options.seed)]
        sys.exit(by_pictures(options.work, "test", None, kept))
