"""Raw input gradients of each model towards a text, as in the paper's Figure 3.

    python examples/pag.py                           # examples/cat-face.png → pag.png

`clipag pag` does the same from the shell.
"""

from pathlib import Path

import clipag_plugins as clip
from clipag_plugins.pag import gradient_images, input_gradient
from clipag_plugins.pictures import read_square, to_pil
from clipag_plugins.sheet import sheet

TEXTS = ["cat face", "a volcano", "a strawberry"]

image = read_square(Path(__file__).parent / "cat-face.png", 224)[None]
vanilla, clipag = clip.load_model("clip-mini"), clip.load_model("clipag-mini")
models = {"vanilla": vanilla, "smoothed": clip.smooth(vanilla, 1.0, 32), "CLIPAG": clipag}
rows = []
for text in TEXTS:
    gradients = [input_gradient(m, image, [clip.text_target(m, text)]) for m in models.values()]
    rows.append([to_pil(image[0]), *(to_pil(gradient_images(g)[0]) for g in gradients)])
sheet(rows, ["picture", *models], TEXTS).save("pag.png")
