"""The README's contact sheet: 24 prompts, one seed, CLIPAG beside vanilla, uncurated.

    python -m benchmarks.contact_sheet

The prompts are the first 16 of `seen.txt` and the first 8 of `unseen.txt` in an order
drawn once from a fixed seed: nobody chose them for their pictures. Each picture is the best of
the default number of tries, by its own model's choice.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clipag_plugins.files import write_beside
from clipag_plugins.finetune.embedded.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.sampler import generate

SEEN, UNSEEN, COLUMNS = 16, 8, 6
SIDE, MARGIN, CAPTION = 112, 6, 18


def prompts() -> list[str]:
    """Return the 24 prompts: 16 seen captions, then 8 that the training never saw."""
    chosen = []
    for name, count in (("seen", SEEN), ("unseen", UNSEEN)):
        captions = read_concepts(SPLIT_FOLDER / f"{name}.txt")
        random.Random(0).shuffle(captions)
        chosen += captions[:count]
    return chosen


def main(out: Path, seed: int) -> None:
    """Draw every prompt with both models and arrange the pairs."""
    texts = prompts()
    drawn = [generate(texts, model, seed=seed) for model in ("clip-mini", "clipag-mini")]
    pictures = [batch for batch in drawn if isinstance(batch, list)]
    captions = [text + (" *" if i >= SEEN else "") for i, text in enumerate(texts)]
    write_sheet(out, captions, pictures, COLUMNS)
    print(out)


def write_sheet(
    out: Path, captions: list[str], pictures: Sequence[list[Image.Image]], columns: int
) -> None:
    """Write a sheet that shows under each caption its picture from every list, side by side."""
    width, height = len(pictures) * SIDE + 2 * MARGIN, SIDE + CAPTION + MARGIN
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, caption in enumerate(captions):
        left, top = (i % columns) * width + MARGIN, (i // columns) * height
        draw.text((left, top + 1), caption, "black", font)
        for j, of_one_kind in enumerate(pictures):
            small = of_one_kind[i].resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (left + j * SIDE, top + CAPTION))
    with write_beside(out) as temporary:
        sheet.save(temporary, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("examples/contact_sheet.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.out, options.seed)
