"""The shapes of the embedded models, and how the fine tower is trained.

How the coarse towers are trained is in configs/clip-mini.toml and configs/clipag-mini.toml.
"""

from dataclasses import dataclass
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

# Under `fine_cfg`: what the models of two scales have beside. Their temperature is that of
# `clip-mini`, since a mean of two cosines has about the range of one. `export` adds the number of
# concepts to the `text_cfg`.
FINE: dict[str, Any] = {"vision_cfg": {"image_size": 128, "fine": "lite0"}, "text_cfg": {}}
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


@dataclass(frozen=True)
class Recipe:
    """How `robust_tower` trains.

    Attributes:
        minutes: of adversarial training.
        side: of the pictures.
        eps: L2 radius of the attack, for images of that side in [0, 1].
        steps: of the attack, which has a random start.
        batch: pictures.
        corpus, drawn: share of the batch from the corpus, and of impressions; the rest is
            unlabelled.
        lr: AdamW's largest rate. It falls by a cosine. The head's is twice as large.
        class_loss: weight of each of the two losses towards the original's class probabilities.
        feature_loss: weight of the distance to the original's features.
        scale: largest scale of the logits. At 54 the attack destroyed everything within 50
            updates.
        ramp: part of the time in which eps rises to its value.
        average: decay of the weights' average.
        head_steps, head_pictures: of training the head alone, before.
        seed: of everything random.
        start: a tower of an earlier run to go on from, instead of the pretrained one; "" for none.
    """

    minutes: float = 8.0
    side: int = 128
    eps: float = 2.0
    steps: int = 2
    batch: int = 256
    corpus: float = 0.5
    drawn: float = 0.3
    lr: float = 1e-3
    class_loss: float = 0.5
    feature_loss: float = 1.0
    scale: float = 24.5
    ramp: float = 0.3
    average: float = 0.998
    head_steps: int = 2000
    head_pictures: int = 30_000
    seed: int = 0
    start: str = ""
