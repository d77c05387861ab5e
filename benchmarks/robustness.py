"""Zero-shot accuracy on held-out pictures, clean and attacked, vanilla and CLIPAG.

    python -m benchmarks.robustness --work build/weights --pictures 100 --attacks clean pgd

Writes pictures of the corpus' `test` split on white to a folder for each caption, and has
`clipag eval robustness` measure both embedded models on it: each picture among the captions of
all. What is not said here is passed on to that command.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from clipag_plugins.cli import main as clipag
from clipag_plugins.files import slug
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.pictures import upright

from . import RESULTS
from .pag import first_of_each


def write_folders(work: Path, folder: Path, pictures: int) -> None:
    """Write the first held-out pictures, one of each caption, as {caption}/{source}.png."""
    pixels, rows = corpus.load(work)
    for row in first_of_each(rows, "test")[:pictures]:
        inner = folder / slug(row.caption)
        inner.mkdir(parents=True, exist_ok=True)
        upright(Image.fromarray(pixels[row.index])).save(inner / f"{row.source}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options, more = parser.parse_known_args()
    place = options.work / "held-out" / str(options.pictures)
    write_folders(options.work, place, options.pictures)
    sys.exit(clipag(["eval", "robustness", str(place), "--out", str(options.out), *more]))
