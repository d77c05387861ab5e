"""Retrieval on held-out pictures, clean and under attack.

    python -m benchmarks.retrieval --work build/weights

How often the caption of a picture of the corpus' `test` split is among the 10 most similar of all
captions, clean and under 5-step PGD (L2, ε for 64 × 64 images in [0, 1]). It needs the corpus and
the text tower in the work folder: the first two stages of `make weights`.
"""

import argparse
from pathlib import Path

from clipag_plugins.finetune.embedded.image_tower import EmbeddedCorpus
from clipag_plugins.hub import load_model
from clipag_plugins.targets import text_embeddings

from . import keep


def main(work: Path) -> None:
    """Measure both embedded models and write the figures."""
    corpus = EmbeddedCorpus(work)
    report: dict[str, object] = {"pictures": len(corpus.test), "captions": len(corpus.captions)}
    for name in ("clip-mini", "clipag-mini"):
        model = load_model(name)
        tower, side = model.visual.tower, model.visual.native_size
        texts = text_embeddings(model, corpus.captions, truncate=True)
        scores = {eps: corpus.retrieval(tower, texts, side, eps) for eps in (1.0, 3.0)}
        report[name] = {
            "top 10": scores[1.0].clean,
            **{f"top 10, eps {eps}": score.robust for eps, score in scores.items()},
        }
    keep("retrieval", report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    main(parser.parse_args().work)
