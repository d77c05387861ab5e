"""Content loss: how far pictures are from a photo in a network's intermediate features.

Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, with VGG19
as CLIPStyler has it, or with the CLIP's own image tower. The features of a robust CLIP follow
what people see (Croce et al., "Adversarially Robust CLIP Models Can Induce Better (Robust)
Perceptual Metrics", 2024), and no second network is needed.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.base import ClipagModel, ImageTower, normalize, resample
from clipag_plugins.errors import ClipagError
from clipag_plugins.hub import load_model
from clipag_plugins.mini import MiniImageTower
from clipag_plugins.stages import stages

Features = Callable[[Tensor], list[Tensor]]
MULTIPLE = 16  # of pixels, that the embedded towers want a side to be


class ContentLoss:
    """The mean squared change of features, relative to the content's own mean square.

    Relative, so that one weight suits towers and layers of any scale. At every look both pictures
    are shifted by the same random part of a tower's stride: with one alignment for all looks the
    stride shows in the picture as a grid.

    Args:
        features: maps images (B, 3, H, W) in [0, 1] to one tensor (B, …) a layer.
        content: (B, 3, H, W) in [0, 1].
        weight: of the loss.
        seed: of the shifts.
    """

    def __init__(self, features: Features, content: Tensor, weight: float = 1.0, seed: int = 0):
        self.features = features
        self.content = content
        self.weight = weight
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the loss (B,) of images (B, 3, H, W), the mean over layers."""
        top, left = torch.randint(MULTIPLE, (2,), generator=self.generator).tolist()
        height, width = images.shape[-2:]
        margins = (left, -(width + left) % MULTIPLE, top, -(height + top) % MULTIPLE)
        with torch.no_grad():
            wanted = self.features(F.pad(self.content, margins, mode="replicate"))
        found = self.features(F.pad(images, margins, mode="replicate"))
        losses = [
            (ours - theirs).flatten(1).pow(2).mean(dim=1)
            / theirs.flatten(1).pow(2).mean(dim=1).clamp_min(1e-12)
            for ours, theirs in zip(found, wanted, strict=True)
        ]
        return self.weight * torch.stack(losses).mean(dim=0)


def tower_features(model: ClipagModel) -> Features:
    """Return what takes features from a CLIP's image tower.

    They are those where a half and three quarters of its stages or blocks are done, as conv4_2
    and conv5_2 are in VGG19: of a transformer of 12 blocks the 6th and 9th, of a ResNet's four
    stages the second and third, of the embedded towers' three the first two. A tower sees the
    picture at its own size, but the embedded ones at full size: they are convolutions all through.

    Raises:
        ClipagError: the tower is of a kind whose layers are not known here.
    """
    try:
        parts, as_maps = stages(model.visual)
    except ClipagError as error:
        raise ClipagError(f"{error} Take --content vgg19.") from error
    tower: Any = model.visual.tower if isinstance(model.visual, ImageTower) else model.visual
    side = None if isinstance(tower, MiniImageTower) else model.visual.native_size
    seen = _hooked(tower, [parts[len(parts) // 2 - 1], parts[len(parts) * 3 // 4 - 1]])

    def features(images: Tensor) -> list[Tensor]:
        sized = images if side is None else resample(images, side)
        return [as_maps(x).float() for x in seen(normalize(sized).to(model.dtype))]

    return features


@cache
def vgg19_features(device: torch.device) -> Features:
    """Return what takes VGG19's conv4_2 and conv5_2, rectified: CLIPStyler's choice.

    torchvision loads it, and downloads 548 MB the first time.

    Raises:
        ClipagError: the weights are neither there nor to be had.
    """
    from torchvision.models import VGG19_Weights, vgg19

    weights = VGG19_Weights.IMAGENET1K_V1
    try:
        layers: Any = vgg19(weights=weights).features[:32]
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ClipagError(
            f"VGG19's weights cannot be had ({error}): fetch {weights.url} elsewhere and put it "
            f"in {folder}, or take the model's own features by --content clip."
        ) from error
    layers = layers.to(device).eval().requires_grad_(False)
    seen, prepare = _hooked(layers, [layers[22], layers[31]]), weights.transforms()

    def features(images: Tensor) -> list[Tensor]:
        mean, std = images.new_tensor(prepare.mean), images.new_tensor(prepare.std)
        return seen((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))

    return features


def features_of(name: str, model: ClipagModel) -> Features:
    """Return what takes the features that hold the content.

    Args:
        name: "clip" for the model's own, "vgg19", or what `load_model` takes: another model's.
        model: the CLIP that guides.

    Raises:
        ClipagError: there is no such network, or it cannot be had.
    """
    if name == "clip":
        return tower_features(model)
    if name == "vgg19":
        return vgg19_features(model.device)
    return _other_features(name, model.device)


@cache
def _other_features(name: str, device: torch.device) -> Features:
    return tower_features(load_model(name, device))


def _hooked(network: nn.Module, layers: Sequence[nn.Module]) -> Features:
    """Return what runs a network and returns what these layers put out."""

    def features(x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda *seen: found.append(seen[2])) for layer in layers
        ]
        try:
            network(x)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    return features
