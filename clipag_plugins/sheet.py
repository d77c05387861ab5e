"""Pictures in rows and columns under their titles."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN, LINE, FONT = 6, 18, 13


def sheet(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], names: Sequence[str]
) -> Image.Image:
    """Arrange rows of pictures of one size, with a title over each column and row."""
    width, height = rows[0][0].size
    canvas = Image.new(
        "RGB",
        (len(columns) * (width + MARGIN) + MARGIN, LINE + len(rows) * (LINE + height + MARGIN)),
        "white",
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    for j, title in enumerate(columns):
        draw.text((MARGIN + j * (width + MARGIN), 1), title, "black", font)
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        top = LINE + i * (LINE + height + MARGIN)
        draw.text((MARGIN, top + 1), name, "dimgray", font)
        for j, picture in enumerate(row):
            canvas.paste(picture, (MARGIN + j * (width + MARGIN), top + LINE))
    return canvas
