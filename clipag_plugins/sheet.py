"""Arrange pictures in a titled grid."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN, TITLE_HEIGHT, FONT_SIZE = 6, 18, 13  # pixels


def sheet(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], names: Sequence[str]
) -> Image.Image:
    """Return one picture of rows of equally large pictures, with a title above each column and row.

    There are as many `names` as rows, and as many `columns` as pictures in a row.
    """
    width, height = rows[0][0].size
    canvas = Image.new(
        "RGB",
        (
            len(columns) * (width + MARGIN) + MARGIN,
            TITLE_HEIGHT + len(rows) * (TITLE_HEIGHT + height + MARGIN),
        ),
        "white",
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    for j, title in enumerate(columns):
        draw.text((MARGIN + j * (width + MARGIN), 1), title, "black", font)
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        top = TITLE_HEIGHT + i * (TITLE_HEIGHT + height + MARGIN)
        draw.text((MARGIN, top + 1), name, "dimgray", font)
        for j, picture in enumerate(row):
            canvas.paste(picture, (MARGIN + j * (width + MARGIN), top + TITLE_HEIGHT))
    return canvas


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return equally large pictures side by side, without margins."""
    width, height = pictures[0].size
    canvas = Image.new("RGB", (len(pictures) * width, height))
    for number, picture in enumerate(pictures):
        canvas.paste(picture, (number * width, 0))
    return canvas
