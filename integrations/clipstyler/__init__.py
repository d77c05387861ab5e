"""CLIPStyler: repaint a photo in the style of a text (Kwon & Ye, CVPR 2022)."""

from clipag_plugins.integrations.clipstyler.content import ContentLoss, features_of, tower_features
from clipag_plugins.integrations.clipstyler.network import StyleNetwork, new_network
from clipag_plugins.integrations.clipstyler.styling import (
    Losses,
    StyleCanvas,
    apply,
    style,
    train,
    usual_steps,
)

__all__ = [
    "ContentLoss",
    "Losses",
    "StyleCanvas",
    "StyleNetwork",
    "apply",
    "features_of",
    "new_network",
    "style",
    "tower_features",
    "train",
    "usual_steps",
]
