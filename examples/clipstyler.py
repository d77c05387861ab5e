"""CLIPStyler with and without its style network: only the canvas differs."""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.canvas import PixelCanvas
from clipag_plugins.integrations.clipstyler import ContentLoss, StyleCanvas, tower_features
from clipag_plugins.pictures import from_pil, read_picture, to_pil
from clipag_plugins.targets import style_target

photo = Path(sys.argv[1])
text = sys.argv[2] if len(sys.argv) > 2 else "a rainbow"
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 60
side = int(sys.argv[4]) if len(sys.argv) > 4 else 224

torch.manual_seed(0)
model = clip.load_model()
image = from_pil(read_picture(photo), (side, side))[None]
target = style_target(model, text, image[0])  # a direction, from the photo and "a Photo"

# The guide sees random crops of the picture, each in a random perspective.
crops = clip.Views(
    0, 32, patch=0.4, perspective=0.5,
    noise=0, brightness=0, contrast=0, saturation=0, cutout=0,
)  # fmt: skip
guide = clip.Guide(model, [[target]], crops, seeds=[0])
content = ContentLoss(tower_features(model), image, weight=0.05)


def colours(images: torch.Tensor) -> torch.Tensor:
    """A penalty of your own: keep the photo's colours roughly in place."""
    after, before = (F.interpolate(x, 4, mode="area") for x in (images, image))
    return 0.5 * F.mse_loss(after, before, reduction="none").mean(dim=(1, 2, 3))


for name, canvas in (("network", StyleCanvas(image)), ("pixels", PixelCanvas(image, 0.02))):
    ascent = clip.ascend(canvas, guide, steps, penalties=[content, colours])
    to_pil(ascent.images[0]).save(f"{photo.stem}-{name}.png")
