"""The shapes of the embedded models. How the image towers are trained is in configs/clip-mini.toml
and configs/clipag-mini.toml."""

from typing import Any

# Under `model_cfg` in weights/config.json.
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

# Under `fine_cfg`: the image towers of the models of two scales. Their temperature is that of
# `clip-mini`, since a mean of two cosines has about the range of one.
FINE: dict[str, Any] = {"image_size": 128, "fine": "lite0"}
FINE_SCALE = 3.7

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
