"""VQGAN+CLIP: the latent of a VQGAN as a canvas (Crowson et al., ECCV 2022)."""

from clipag_plugins.integrations.vqgan.canvas import (
    VqganCanvas,
    VqganSettings,
    codebook,
    draw,
    encode,
    nearest_codes,
    settings_for,
    starting_latent,
)
from clipag_plugins.integrations.vqgan.cutouts import Cutouts
from clipag_plugins.integrations.vqgan.weights import load_vqgan

__all__ = [
    "Cutouts",
    "VqganCanvas",
    "VqganSettings",
    "codebook",
    "draw",
    "encode",
    "load_vqgan",
    "nearest_codes",
    "settings_for",
    "starting_latent",
]
