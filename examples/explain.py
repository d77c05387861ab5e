"""HiResCAM of "cat face" by vanilla CLIP and CLIPAG, clean and under the paper's attack.

    python examples/explain.py                       # examples/cat-face.png → explain.png

Needs pip install 'clipag-plugins[explain]'. `clipag explain` does the same from the shell.
"""

from pathlib import Path

import clipag_plugins as clip
from clipag_plugins.attack import Linf, attack
from clipag_plugins.explain import contrast_targets, heat_maps, overlay
from clipag_plugins.pictures import read_square, to_pil
from clipag_plugins.sheet import sheet

TEXT = "cat face"
MODELS = ["clip-mini", "clipag-mini"]

image = read_square(Path(__file__).parent / "cat-face.png", 224)[None]
rows = []
for name in MODELS:
    model = clip.load_model(name)
    row = []
    for picture in (image, attack(model, image, TEXT, Linf(8 / 255, 20, 1 / 255))):
        (heat,) = heat_maps(model, picture, contrast_targets(model, [TEXT]))
        row += [to_pil(picture[0]), overlay(picture[0], heat)]
    rows.append(row)
sheet(rows, ["picture", "HiResCAM", "attacked", "HiResCAM"], MODELS).save("explain.png")
