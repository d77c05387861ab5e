"""Retrieval on held-out pictures, clean and under attack.

    python -m benchmarks.retrieval --work build/weights

How often a picture of the corpus' `test` split has its own caption in the top 10 of all
captions, as it is and under 5-step PGD (L2, ε on 64 × 64 images in [0, 1]). Needs the
corpus and the text tower in the work folder: the first two stages of `make weights`.
"""

import argparse
from pathlib import Path

from clipag_plugins.finetune.embedded.image_tower import Trainer
from clipag_plugins.hub import load_model
from clipag_plugins.targets import text_embeddings

from . import keep


def main(work: Path) -> None:
    """Measure both embedded models and write the figures."""
    trainer = Trainer(work, seed=0)
    report: dict[str, object] = {"pictures": len(trainer.test), "captions": len(trainer.captions)}
    for name in ("clip-mini", "clipag-mini"):
        model = load_model(name)
        tower, side = model.visual.tower, model.visual.native_size
        texts = text_embeddings(model, trainer.captions, truncate=True)
        found = {eps: trainer.retrieval(tower, texts, side, eps) for eps in (1.0, 3.0)}
        report[name] = {
            "top 10": found[1.0].clean,
            **{f"top 10, eps {eps}": scores.robust for eps, scores in found.items()},
        }
    keep("retrieval", report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    main(parser.parse_args().work)
