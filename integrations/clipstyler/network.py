"""CLIPStyler's style network: a small U-Net that repaints one photo, or any photo."""

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
from clipag_plugins.streams import draw_from

STRIDE = 8  # of the deepest level
WIDEST = 256
METADATA = ("prompt", "seed", "model", "steps")  # keys that a network's file may hold
# Pixels are clamped to [DARKEST, 1 - DARKEST], since the logit has no gradient at black and white.
DARKEST = 0.02


class StyleNetwork(nn.Module):
    """A U-Net of three levels that adds to the logits of a picture.

    CLIPStyler's network generates the whole picture, and its first steps only learn to copy it.
    This network starts as the identity, so every step goes into the style, and a network that was
    trained on some pictures can be applied to others.

    Args:
        width: channels at full resolution; each level has twice as many as the one above.
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
        """Repaint images (B, 3, H, W) in [0, 1], of any height and width."""
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
    """A convolution, instance normalisation and a ReLU."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution
        self.norm = nn.InstanceNorm2d(convolution.out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.norm(self.convolution(x)))
        return y


def new_network(seed: int) -> StyleNetwork:
    """Return an untrained network, whose weights are drawn from the seed."""
    with draw_from(torch.Generator().manual_seed(seed)):
        return StyleNetwork()


def save(network: StyleNetwork, path: Path, metadata: dict[str, str]) -> None:
    """Write a network as .safetensors, with metadata under the keys of `METADATA`."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with write_beside(path) as temporary:
        save_file(state, temporary, metadata=metadata)


def load(path: Path) -> tuple[StyleNetwork, dict[str, str]]:
    """Read a network that `save` wrote, and its metadata.

    Raises:
        ClipagError: there is no such file, or it is not a style network.
    """
    if not path.is_file():
        raise ClipagError(f"There is no style network {path}: train one first.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        width = len(state["stem.bias"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ClipagError(f"{path} is not a style network: train one first.") from error
    if not 1 <= width <= WIDEST:
        raise ClipagError(f"{path} is not a style network: it is {width} channels wide.")
    network = StyleNetwork(width)
    check_tensors(network.state_dict(), state, str(path))
    network.load_state_dict(state)
    # Only known keys: pictures will carry them, and a file from elsewhere may hold anything.
    known = {key: metadata[key] for key in METADATA if key in metadata}
    return network.requires_grad_(False), known
