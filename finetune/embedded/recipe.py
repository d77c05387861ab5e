"""The shape of the embedded models and the settings that made them."""

from dataclasses import dataclass
from typing import Any

MINI: dict[str, Any] = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": 48, "widths": [64, 128, 256], "depths": [1, 2, 2]},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 192,
        "heads": 4,
        "layers": 4,
    },
}

# In taming's own config format.
VQGAN: dict[str, Any] = {
    "target": "taming.models.vqgan.VQModel",
    "params": {
        "n_embed": 1024,
        "embed_dim": 64,
        "ddconfig": {
            "double_z": False,
            "z_channels": 64,
            "resolution": 64,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 1, 2, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    },
}


@dataclass(frozen=True)
class Stage:
    """One stretch of training at one input side. ε is L2 on 64 × 64 images in [0, 1] and is
    scaled with the side, so that the change a pixel can suffer stays the same."""

    side: int
    steps: int
    rate: float
    eps: float = 0.0
    attack_steps: int = 0
    dreams: int = 0  # pictures a batch that the tower draws itself, as negatives
    dream_steps: int = 0


BATCH = 128
VANILLA = (Stage(48, 900, 1.5e-3), Stage(64, 150, 3e-4), Stage(48, 250, 3e-4))
CLIPAG = (
    Stage(48, 500, 1e-3, eps=1.0, attack_steps=2, dreams=32, dream_steps=5),
    Stage(48, 2700, 7e-4, eps=2.0, attack_steps=2, dreams=48, dream_steps=6),
    Stage(48, 1200, 4e-4, eps=2.0, attack_steps=2, dreams=48, dream_steps=8),
)
