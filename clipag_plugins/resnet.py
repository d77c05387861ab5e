"""OpenAI's ResNets: open_clip's, under OpenAI's names."""

from typing import Any

from open_clip import modified_resnet
from open_clip.modified_resnet import AttentionPool2d
from torch import nn

__all__ = ["AttentionPool2d", "Bottleneck", "ModifiedResNet", "use_openais_names"]

# OpenAI's names of modules that open_clip has under others.
NAMES = {"relu1": "act1", "relu2": "act2", "relu3": "act3"}


class _OpenAIsNames(nn.Module):
    """Finds and replaces modules under OpenAI's names too."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(NAMES.get(name, name))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(NAMES.get(name, name), value)


class Bottleneck(_OpenAIsNames, modified_resnet.Bottleneck):  # type: ignore[misc]
    """Residual block; arguments are open_clip's and OpenAI's."""


class ModifiedResNet(_OpenAIsNames, modified_resnet.ModifiedResNet):  # type: ignore[misc]
    """Image tower; arguments are open_clip's and OpenAI's."""

    def __init__(
        self,
        layers: list[int],
        output_dim: int,
        heads: int,
        input_resolution: int = 224,
        width: int = 64,
    ):
        super().__init__(layers, output_dim, heads, input_resolution, width)
        self.input_resolution = input_resolution
        use_openais_names(self)


CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    modified_resnet.Bottleneck: Bottleneck,
    modified_resnet.ModifiedResNet: ModifiedResNet,
}


def use_openais_names(model: nn.Module) -> None:
    """Let the modules of ResNets that open_clip has built be found under OpenAI's names."""
    for module in model.modules():
        module.__class__ = CLASSES.get(type(module), type(module))
