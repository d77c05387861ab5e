"""OpenAI's `clip.model`: the architecture, and `build_model`."""

from typing import Any

from clipag_plugins.hub import build_model
from clipag_plugins.vit import (
    CLIP,
    LayerNorm,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
    convert_weights,
)

__all__ = [
    "CLIP",
    "LayerNorm",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "build_model",
    "convert_weights",
]


def __getattr__(name: str) -> Any:
    """Take the parts of OpenAI's ResNets from open_clip, which has the same names for them."""
    if name in ("AttentionPool2d", "Bottleneck", "ModifiedResNet"):
        from open_clip import modified_resnet

        return getattr(modified_resnet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
