"""CLIPStyler's style network: a small U-Net that repaints one photo, or any."""

import itertools
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.architecture import check_tensors
from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside

STRIDE = 8  # of the deepest level
WIDEST = 256
FACTS = ("prompt", "seed", "model", "steps")  # of a style, that its network's file tells
# Black and white are brought this near: from there a change of tone still has a gradient.
DARKEST = 0.02


class StyleNetwork(nn.Module):
    """A U-Net of three levels that adds to a picture's logits.

    CLIPStyler's network draws the picture anew and spends its first steps on learning to copy
    it. This one starts as the identity, so that every step goes into the style and so that what
    it learned on one picture, or on many, serves for another.

    Args:
        width: channels at full resolution; each level has twice those of the one above.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        self.width = width
        widths = [width * 2**level for level in range(4)]
        pairs = list(itertools.pairwise(widths))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(_Unit(nn.Conv2d(a, b, 4, 2, 1)), _Unit(nn.Conv2d(b, b, 3, padding=1)))
            for a, b in pairs
        )
        self.up = nn.ModuleList(_Unit(nn.Conv2d(b, a, 3, padding=1)) for a, b in reversed(pairs))
        self.out = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1], repainted, of any height and width."""
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        x = F.relu(self.stem(x))
        skipped = []
        for level in self.down:
            skipped.append(x)
            x = level(x)
        for level in self.up:
            x = level(F.interpolate(x, scale_factor=2.0, mode="bilinear")) + skipped.pop()
        change = self.out(x)[..., :height, :width]
        return torch.sigmoid(images.clamp(DARKEST, 1 - DARKEST).logit() + change)


class _Unit(nn.Module):
    """A convolution, normalised image by image and channel by channel, and a ReLU."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution
        self.norm = nn.InstanceNorm2d(convolution.out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.norm(self.convolution(x)))
        return y


def save(network: StyleNetwork, path: Path, facts: dict[str, str]) -> None:
    """Write a network as .safetensors, with `facts` (those of `FACTS`) as its metadata."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with write_beside(path) as temporary:
        save_file(state, temporary, metadata=facts)


def load(path: Path) -> tuple[StyleNetwork, dict[str, str]]:
    """Read a network that `save` wrote, and its facts.

    Raises:
        ClipagError: there is no such file, or it is not such a network.
    """
    if not path.is_file():
        raise ClipagError(f"There is no style network {path}: train one by --train-on.")
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        width = len(state["stem.bias"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ClipagError(f"{path} is not a style network: train one by --train-on.") from error
    if not 1 <= width <= WIDEST:
        raise ClipagError(f"{path} is not a style network: it is {width} channels wide.")
    network = StyleNetwork(width)
    check_tensors(network.state_dict(), state, str(path))
    network.load_state_dict(state)
    # Those alone: a picture will carry them, and a file may tell anything.
    return network.requires_grad_(False), {key: told[key] for key in FACTS if key in told}
