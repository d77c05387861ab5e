"""The PAG score: vanilla, smoothed and CLIPAG, by a judge that had no part in any of them.

    python -m benchmarks.pag

Each of the 200 seen and unseen captions meets one image of the embedded mixture, which is coloured
blobs and nothing yet. How `pag_scores` and its judge are chosen is said there.
"""

import argparse
import json

import torch

from clipag_plugins import gmm
from clipag_plugins.evaluation import mean
from clipag_plugins.files import write_beside
from clipag_plugins.finetune.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.model import load_clipag
from clipag_plugins.pag import SAMPLES, SIGMA, pag_scores
from clipag_plugins.smoothing import smooth

from . import evaluator
from .quality import RESULTS

SIDE, BATCH = 64, 50


def blobs(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return images (count, 3, SIDE, SIDE) of the mixture, away from 0 and 1."""
    drawn = gmm.load().sample(-(-count // 200), generator)
    chosen = torch.randperm(len(drawn), generator=generator)[:count]
    return 0.2 + 0.6 * gmm.enlarge(drawn[chosen], SIDE).clamp(0, 1)


def main(options: argparse.Namespace) -> None:
    """Score the three and their differences, and write the figures."""
    judge = evaluator.load()
    texts = [t for kind in ("seen", "unseen") for t in read_concepts(SPLIT_FOLDER / f"{kind}.txt")]
    texts = (texts * options.rounds)[: options.pictures]
    images = blobs(len(texts), torch.Generator().manual_seed(options.seed))
    vanilla = load_clipag("clip-mini")
    models = {
        "clip-mini": vanilla,
        "clip-mini, smoothed": smooth(vanilla, options.sigma, options.samples),
        "clipag-mini": load_clipag("clipag-mini"),
    }
    scores = {}
    for name, model in models.items():
        generator = torch.Generator().manual_seed(options.seed)
        parts = [
            pag_scores(model, judge, images[i : i + BATCH], texts[i : i + BATCH],
                       generator=generator)
            for i in range(0, len(texts), BATCH)
        ]  # fmt: skip
        scores[name] = torch.cat(parts)
        print(name, mean("PAG score", judge.name, scores[name]), flush=True)
    vanilla_scores, smoothed, robust = scores.values()
    values = {
        **scores,
        "smoothed less vanilla": smoothed - vanilla_scores,
        "CLIPAG less smoothed": robust - smoothed,
    }
    rows = {name: mean("PAG score", judge.name, value) for name, value in values.items()}
    report = {
        "pairs": len(texts),
        "sigma": options.sigma,
        "samples": options.samples,
        "seed": options.seed,
        **{k: [round(x, 3) for x in (r.value, r.low, r.high)] for k, r in rows.items()},
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.pictures is None:
        with write_beside(RESULTS / "pag.json") as temporary:
            temporary.write_text(text + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2, help="images for each caption")
    parser.add_argument("--sigma", type=float, default=SIGMA)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--pictures", type=int, help="only the first, printed and not kept")
    main(parser.parse_args())
