"""The README's contact sheet: 24 prompts, one seed, CLIPAG beside vanilla, uncurated.

    python -m benchmarks.contact_sheet

The prompts are the first 16 of `seen.txt` and the first 8 of `unseen.txt` after a shuffle with a
fixed seed: nobody chose them for their pictures. Each picture is the best of the default number of
tries, as judged by the model that drew it.
"""

import argparse
import random
from pathlib import Path

from clipag_plugins.finetune.embedded.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.sampler import generate

from . import FIGURES
from .common import write_sheet

SEEN, UNSEEN, COLUMNS = 16, 8, 6  # prompts of both lists; prompts on a line


def prompts() -> list[str]:
    """Return the 24 prompts: 16 captions of the training set, then 8 that are not in it."""
    chosen = []
    for name, count in (("seen", SEEN), ("unseen", UNSEEN)):
        captions = read_concepts(SPLIT_FOLDER / f"{name}.txt")
        random.Random(0).shuffle(captions)
        chosen += captions[:count]
    return chosen


def main(out: Path, seed: int) -> None:
    """Draw every prompt with both models and arrange the pairs."""
    texts = prompts()
    drawn = [generate(texts, model, seed=seed) for model in ("clip-lite", "clipag-lite")]
    pictures = [batch for batch in drawn if isinstance(batch, list)]
    captions = [text + (" *" if i >= SEEN else "") for i, text in enumerate(texts)]
    write_sheet(out, captions, pictures, COLUMNS)
    print(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=FIGURES / "contact_sheet.webp")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.out, options.seed)
