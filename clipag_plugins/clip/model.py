"""OpenAI's `clip.model`: the architecture, and how it is built from a state dict."""

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
    """Take the parts of OpenAI's ResNets from open_clip, which has them under these names."""
    if name in ("AttentionPool2d", "Bottleneck", "ModifiedResNet"):
        from open_clip import modified_resnet

        return getattr(modified_resnet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
