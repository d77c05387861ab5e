"""Zero-shot accuracy on held-out pictures, clean and attacked, vanilla and CLIPAG.

    python -m benchmarks.robustness --work build/weights --pictures 100 --attacks clean pgd

Writes pictures of the corpus' `test` split on white, in a folder for each caption, and measures
both embedded models on them as `clipag eval robustness` does. The candidates for a picture are the
captions of all pictures.
"""

import argparse
from pathlib import Path

from PIL import Image

from clipag_plugins.arguments import fraction
from clipag_plugins.attack import threat_model_of
from clipag_plugins.defaults import ATTACKS, NORMS, SIDE
from clipag_plugins.evaluation.options import ComputeOptions
from clipag_plugins.evaluation.robustness import RobustnessSettings, robustness_table
from clipag_plugins.files import slug
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.pictures import upright

from . import keep_report
from .common import first_of_each

MODELS = ("clip-mini", "clipag-mini")


def write_folders(work: Path, folder: Path, count: int) -> None:
    """Write the first held-out pictures, one for each caption, as {caption}/{source}.png."""
    pixels, pictures = corpus.load(work)
    for picture in first_of_each(pictures, "test")[:count]:
        subfolder = folder / slug(picture.caption)
        subfolder.mkdir(parents=True, exist_ok=True)
        image = upright(Image.fromarray(pixels[picture.index]))
        image.save(subfolder / f"{picture.source}.png")


def main(options: argparse.Namespace) -> None:
    """Write the pictures, measure, and keep the table."""
    folder = options.work / "held-out" / str(options.pictures)
    write_folders(options.work, folder, options.pictures)
    settings = RobustnessSettings(
        threat_model_of(options.norm, options.eps, options.steps),
        options.attacks,
        size=options.size,
        seed=options.seed,
    )
    keep_report(
        "robustness", robustness_table(folder, MODELS, settings, ComputeOptions(options.device))
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS)
    parser.add_argument("--norm", choices=NORMS, default="linf")
    parser.add_argument("--eps", type=fraction, default=8 / 255)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=SIDE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    main(parser.parse_args())
