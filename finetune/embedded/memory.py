"""Compute the memory that the embedded models' text towers end in (`clipag_plugins.mini.Memory`).

Keys are the frozen text tower's embeddings of the training captions. For each image tower, the
value of a caption is the mean embedding of its pictures on white, minus the mean of all captions.
Nothing is trained.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.base import normalize
from clipag_plugins.finetune.embedded.image_tower import EmbeddedCorpus, Pictures
from clipag_plugins.finetune.embedded.recipe import MINI
from clipag_plugins.mini import build_towers


def build_memory(work: Path, towers: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the keys under "keys", and each model's values under its name.

    Args:
        work: folder with the corpus and the trained towers.
        towers: names of the models, and of their image towers' files in `work`.

    Returns:
        Tensors of shape (captions, embed_dim).
    """
    trainer = EmbeddedCorpus(work)
    memory = {"keys": trainer.embeddings[trainer.allowed]}
    for name, kind in towers.items():
        tower = build_towers(MINI)[0].eval()
        tower.load_state_dict(load_file(work / f"{kind}.safetensors"))
        memory[name] = _mean_embeddings(tower, trainer)
    return memory


@torch.no_grad()
def _mean_embeddings(tower: nn.Module, trainer: EmbeddedCorpus) -> Tensor:
    """Return the centred mean embedding of each training caption's pictures."""
    side: int = MINI["vision_cfg"]["image_size"]
    sums, counts = torch.zeros_like(trainer.embeddings), torch.zeros(len(trainer.captions), 1)
    for rows in trainer.train.split(512):
        images = Pictures(trainer.pixels[rows], side).plain(torch.arange(len(rows)))
        captions = trainer.caption_of[rows]
        sums.index_add_(0, captions, F.normalize(tower(normalize(images)), dim=1))
        counts.index_add_(0, captions, torch.ones(len(rows), 1))
    means = sums[trainer.allowed] / counts[trainer.allowed]
    return means - means.mean(dim=0)
