"""OpenAI's `clip.model`: the architecture, and how it is built from a state dict."""

from ..model import build_model
from ..vit import (
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
