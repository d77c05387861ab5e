"""The memories that the embedded models' text towers end in: `export` fills them.

Keys are the captions of the training split, as the frozen text tower embeds them; values, for
each image tower, the mean embedding of a caption's pictures on white, less the mean of all
captions'. Nothing is trained. `clipag_plugins.mini.Memory` says what it is for.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.base import normalize
from clipag_plugins.finetune.embedded.image_tower import Pictures, Trainer
from clipag_plugins.finetune.embedded.recipe import MINI
from clipag_plugins.mini import build_towers


def fill(work: Path, towers: Mapping[str, str]) -> dict[str, Tensor]:
    """Return "keys", and the values under each model's name, (captions, embed_dim).

    `towers` maps the names to those of the files in `work`.
    """
    trainer = Trainer(work, seed=0)
    found = {"keys": trainer.embeddings[trainer.allowed]}
    for name, kind in towers.items():
        tower = build_towers(MINI)[0].eval()
        tower.load_state_dict(load_file(work / f"{kind}.safetensors"))
        found[name] = _seen_by(tower, trainer)
    return found


@torch.no_grad()
def _seen_by(tower: nn.Module, trainer: Trainer) -> Tensor:
    side: int = MINI["vision_cfg"]["image_size"]
    sums, counts = torch.zeros_like(trainer.embeddings), torch.zeros(len(trainer.captions), 1)
    for rows in trainer.train.split(512):
        images = Pictures(trainer.pixels[rows], side).plain(torch.arange(len(rows)))
        captions = trainer.caption_of[rows]
        sums.index_add_(0, captions, F.normalize(tower(normalize(images)), dim=1))
        counts.index_add_(0, captions, torch.ones(len(rows), 1))
    means = sums[trainer.allowed] / counts[trainer.allowed]
    return means - means.mean(dim=0)
