"""The README's contact sheet: 24 prompts, one seed, CLIPAG beside vanilla, uncurated.

    python -m benchmarks.contact_sheet

The prompts are the first 16 of `seen.txt` and the first 8 of `unseen.txt` in an order
drawn once from a fixed seed: nobody chose them for their pictures.
"""

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clipag_plugins.files import write_beside
from clipag_plugins.finetune.corpus import SPLIT_FOLDER, read_concepts
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
    columns = [generate(texts, model, seed=seed) for model in ("clip-mini", "clipag-mini")]
    width, height = 2 * SIDE + 2 * MARGIN, SIDE + CAPTION + MARGIN
    rows = -(-len(texts) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, text in enumerate(texts):
        left, top = (i % COLUMNS) * width + MARGIN, (i // COLUMNS) * height
        draw.text((left, top + 1), text + (" *" if i >= SEEN else ""), "black", font)
        for j, pictures in enumerate(columns):
            small = pictures[i].resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (left + j * SIDE, top + CAPTION))
    with write_beside(out) as temporary:
        sheet.save(temporary, optimize=True)
    print(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("examples/contact_sheet.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    main(options.out, options.seed)
