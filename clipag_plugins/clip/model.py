"""OpenAI's `clip.model`: the architecture, and `build_model`."""

from typing import Any

from clipag_plugins.hub import build_model
from clipag_plugins.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock, Transformer
from clipag_plugins.vit import CLIP, VisionTransformer, convert_weights

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
    """Import the parts of OpenAI's ResNets when they are first used: open_clip takes a while."""
    if name in ("AttentionPool2d", "Bottleneck", "ModifiedResNet"):
        from clipag_plugins import resnet

        return getattr(resnet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
