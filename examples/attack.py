"""Large targeted attacks: pictures that each model takes for the target (Figure 1).

    python examples/attack.py                        # examples/cat-face.png → attack.png

`clipag attack --towards` does one of these attacks from the shell.
"""

from pathlib import Path

import clipag_plugins as clip
from clipag_plugins.attack import L2, attack
from clipag_plugins.pictures import read_square, to_pil
from clipag_plugins.sheet import sheet

TEXT, TOWARDS = "cat face", ["a volcano", "a strawberry", "a green frog"]
MODELS = ["clip-mini", "clipag-mini"]

image = read_square(Path(__file__).parent / "cat-face.png", 224)[None]
rows = []
for name in MODELS:
    model = clip.load_model(name)
    attacked = [attack(model, image, TEXT, L2(50, 60, 2), towards) for towards in TOWARDS]
    rows.append([to_pil(picture[0]) for picture in (image, *attacked)])
sheet(rows, [TEXT, *TOWARDS], MODELS).save("attack.png")
