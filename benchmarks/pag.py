"""The PAG score of vanilla, smoothed and CLIPAG, by real pictures and by an independent judge.

    python -m benchmarks.pag pictures --work build/weights
    python -m benchmarks.pag judge
    python -m benchmarks.pag sheet --work build/weights      # tests/held_out.png

By pictures (`picture_alignment`): the corpus' `test` split, one picture of each caption, and the
gradients half at coloured blobs of the embedded mixture, where an ascent starts, and half at
another caption's picture. By the judge (`judged_alignment`): the 200 seen and unseen captions,
each at five blobs, and the evaluator, which had no part in any of the three models.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipag_plugins import gmm
from clipag_plugins.evaluation import mean
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import corpus
from clipag_plugins.finetune.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.model import ClipagModel, load_clipag
from clipag_plugins.pag import SIGMA, judged_alignment, picture_alignment
from clipag_plugins.sampler import save_png, to_pil
from clipag_plugins.smoothing import smooth

from . import evaluator
from .quality import RESULTS

SIDE, BATCH, ROUNDS, SAMPLES = 64, 50, 5, 16
FREE = ("fluent-emoji", "fluent-emoji-flat", "noto")


def blobs(count: int, generator: torch.Generator, side: int = SIDE) -> Tensor:
    """Return images (count, 3, side, side) of the mixture, away from 0 and 1."""
    drawn = gmm.load().sample(-(-count // 200), generator)
    chosen = torch.randperm(len(drawn), generator=generator)[:count]
    return 0.2 + 0.6 * gmm.enlarge(drawn[chosen], side).clamp(0, 1)


def by_judge(seed: int) -> Callable[[ClipagModel], Tensor]:
    """Return what scores a model by the evaluator."""
    judge = evaluator.load()
    texts = [t for kind in ("seen", "unseen") for t in read_concepts(SPLIT_FOLDER / f"{kind}.txt")]
    texts = texts * ROUNDS
    images = blobs(len(texts), torch.Generator().manual_seed(seed))

    def score(model: ClipagModel) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        parts = [slice(i, i + BATCH) for i in range(0, len(texts), BATCH)]
        return torch.cat(
            [
                judged_alignment(model, judge, images[i], texts[i], generator=generator)
                for i in parts
            ]
        )

    return score


def held_out(work: Path, side: int, sources: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the first picture of each caption in the `test` split, (3, side, side) on white.

    With `sources`, only those that come from one of them.
    """
    pixels, rows = corpus.load(work)
    first = {row.caption: row for row in reversed(rows) if row.split == "test"}
    ordered = sorted(first.items(), key=lambda item: item[1].index)
    first = {text: row for text, row in ordered if not sources or row.source in sources}
    rgba = torch.from_numpy(np.array([pixels[row.index] for row in first.values()]))
    rgba = rgba.permute(0, 3, 1, 2) / 255
    on_white = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
    small = F.interpolate(on_white, size=(side, side), mode="bilinear", antialias=True)
    return dict(zip(first, small, strict=True))


def by_pictures(work: Path, seed: int) -> Callable[[ClipagModel], Tensor]:
    """Return what scores a model by held-out pictures."""
    side = load_clipag().visual.native_size
    found = held_out(work, side)
    pictures = torch.stack([*found.values()])
    generator = torch.Generator().manual_seed(seed)
    starts = [blobs(len(pictures), generator, side), pictures.roll(1, dims=0)]

    def score(model: ClipagModel) -> Tensor:
        scores = [picture_alignment(model, x, list(found), pictures) for x in starts]
        return torch.stack(scores).mean(dim=0)

    return score


def write_sheet(work: Path, path: Path) -> None:
    """Write 96 held-out pictures of 48 × 48, evenly among those whose licences permit it."""
    found = held_out(work, 48, FREE)
    captions = list(found)[:: max(1, len(found) // 96)][:96]
    rows = torch.stack([found[text] for text in captions]).unflatten(0, (8, 12))
    image = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    facts = {
        "captions": "; ".join(captions),
        "source": "Fluent Emoji (Microsoft, MIT); Noto Emoji (Google, Apache-2.0)",
    }
    save_png(to_pil(image), path, facts)


def main(options: argparse.Namespace) -> None:
    """Score the three and their differences, and write the figures."""
    seed = options.seed
    score = by_judge(seed) if options.by == "judge" else by_pictures(options.work, seed)
    vanilla = load_clipag("clip-mini")
    models = {
        "clip-mini": vanilla,
        "clip-mini, smoothed": smooth(vanilla, SIGMA, SAMPLES),
        "clipag-mini": load_clipag("clipag-mini"),
    }
    scores = {}
    for name, model in models.items():
        scores[name] = score(model)
        print(name, mean("", "", scores[name]), flush=True)
    plain, smoothed, robust = scores.values()
    differences = {
        "smoothed less vanilla": smoothed - plain,
        "CLIPAG less smoothed": robust - smoothed,
        "CLIPAG less vanilla": robust - plain,
    }
    rows = {name: mean("", "", value) for name, value in (scores | differences).items()}
    report = {
        "pairs": len(plain),
        "sigma": SIGMA,
        "samples": SAMPLES,
        "seed": seed,
        **{k: [round(x, 3) for x in (r.value, r.low, r.high)] for k, r in rows.items()},
    }
    with write_beside(RESULTS / f"pag_{options.by}.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("by", choices=["pictures", "judge", "sheet"])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.by == "sheet":
        write_sheet(arguments.work, Path("tests/held_out.png"))
    else:
        main(arguments)
