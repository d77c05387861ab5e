"""Content loss: the distance of pictures to a photo in a network's intermediate features.

Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016. The network is
VGG19, as in CLIPStyler, or the image tower of the CLIP that guides. The features of a robust CLIP
agree with human perception (Croce et al., "Adversarially Robust CLIP Models Can Induce Better
(Robust) Perceptual Metrics", 2024), and then no second network is needed.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
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
MULTIPLE = 16  # pixels; the embedded towers need sides that are multiples of this


class ContentLoss:
    """The mean squared change of features, relative to the content's own mean square.

    Relative, so that one weight suits towers and layers of any scale. Each call shifts both
    pictures by the same random part of a tower's stride: with a fixed alignment, the stride would
    show in the picture as a grid.

    Args:
        features: maps images (B, 3, H, W) in [0, 1] to one tensor (B, …) for each layer.
        content: (B, 3, H, W) in [0, 1].
        weight: of the loss.
        seed: where the random shifts come from.
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
            before = self.features(F.pad(self.content, margins, mode="replicate"))
        after = self.features(F.pad(images, margins, mode="replicate"))
        losses = [
            (y - x).flatten(1).pow(2).mean(dim=1) / x.flatten(1).pow(2).mean(dim=1).clamp_min(1e-12)
            for x, y in zip(before, after, strict=True)
        ]
        return self.weight * torch.stack(losses).mean(dim=0)


def tower_features(model: ClipagModel) -> Features:
    """Return a function that computes features with a CLIP's image tower.

    The features come from a half and three quarters of the way through its stages or blocks, as do
    conv4_2 and conv5_2 in VGG19: the 6th and 9th of a transformer's 12 blocks, the second and third
    of a ResNet's four stages, the first two of the embedded towers' three stages. A tower sees the
    picture at its own size. The embedded ones are fully convolutional and see it at full size.

    Raises:
        ClipagError: the layers of this kind of tower are unknown.
    """
    try:
        parts, as_maps = stages(model.visual)
    except ClipagError as error:
        raise ClipagError(f"{error} Set `content` to vgg19.") from error
    tower: Any = model.visual.tower if isinstance(model.visual, ImageTower) else model.visual
    side = None if isinstance(tower, MiniImageTower) else model.visual.native_size
    outputs = _outputs_of(tower, [parts[len(parts) // 2 - 1], parts[len(parts) * 3 // 4 - 1]])

    def features(images: Tensor) -> list[Tensor]:
        sized = images if side is None else resample(images, side)
        return [as_maps(x).float() for x in outputs(normalize(sized).to(model.dtype))]

    return features


@lru_cache(maxsize=1)
def vgg19_features(device: torch.device) -> Features:
    """Return a function that computes VGG19's conv4_2 and conv5_2 after ReLU, as CLIPStyler does.

    torchvision loads the network, and downloads 548 MB the first time.

    Raises:
        ClipagError: the weights are not on this machine and cannot be downloaded.
    """
    from torchvision.models import VGG19_Weights, vgg19

    weights = VGG19_Weights.IMAGENET1K_V1
    try:
        layers: Any = vgg19(weights=weights).features[:32]
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ClipagError(
            f"VGG19's weights cannot be downloaded ({error}): fetch {weights.url} elsewhere and "
            f"put it into {folder}, or set `content` to clip, for the model's own features."
        ) from error
    layers = layers.to(device).eval().requires_grad_(False)
    outputs, prepare = _outputs_of(layers, [layers[22], layers[31]]), weights.transforms()

    def features(images: Tensor) -> list[Tensor]:
        mean, std = images.new_tensor(prepare.mean), images.new_tensor(prepare.std)
        return outputs((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))

    return features


def features_of(name: str, model: ClipagModel) -> Features:
    """Return a function that computes the features of the content loss.

    Args:
        name: "clip" for the model's own features, "vgg19", or another model, as `load_model` takes.
        model: the CLIP that guides.

    Raises:
        ClipagError: there is no such network, or it cannot be downloaded.
    """
    if name == "clip":
        return tower_features(model)
    if name == "vgg19":
        return vgg19_features(model.device)
    return _other_model_features(name, model.device)


# Only the last network is cached, since it stays in memory.
@lru_cache(maxsize=1)
def _other_model_features(name: str, device: torch.device) -> Features:
    return tower_features(load_model(name, device))


def _outputs_of(network: nn.Module, layers: Sequence[nn.Module]) -> Features:
    """Return a function that runs a network and returns the outputs of these layers."""

    def run(x: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
            for layer in layers
        ]
        try:
            network(x)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs

    return run
