"""A canvas of your own: pixels as a coarse-to-fine pyramid, under the same loop."""

import sys

import torch
from torch import nn

from clipag_plugins import Canvas, Guide, Views, ascend, load_model, text_target
from clipag_plugins.pictures import to_pil


class Pyramid(Canvas):
    def __init__(self, size: int = 224, levels: int = 6):
        super().__init__()
        sides = [max(1, size >> level) for level in range(levels)]
        self.layers = nn.ParameterList(torch.zeros(1, 3, side, side) for side in sides)
        self.size = size

    def render(self) -> torch.Tensor:
        full = [nn.functional.interpolate(x, self.size, mode="bilinear") for x in self.layers]
        return torch.sigmoid(torch.stack(full).sum(dim=0))


prompt = sys.argv[1] if len(sys.argv) > 1 else "a red apple"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 60
torch.manual_seed(0)
model = load_model()
guide = Guide(model, [[text_target(model, prompt)]], Views(8, 0, cutout=0, saturation=0))
to_pil(ascend(Pyramid(), guide, steps).images[0]).save("pyramid.png")
