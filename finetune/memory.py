"""Fill the embedded models' memories: what each image tower makes of each caption's pictures.

    python -m clipag_plugins.finetune.memory --work build/weights

Keys are the captions of the training split, as the frozen text tower embeds them; values, for
each tower, the mean embedding of a caption's pictures on white, less the mean of all captions'.
Nothing is trained. `clipag_plugins.mini.Memory` says what it is for.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from clipag_plugins.files import write_beside
from clipag_plugins.mini import build_towers
from clipag_plugins.model import normalize

from .export import IMAGE_TOWERS
from .image import Pictures, Trainer
from .recipe import MINI


def fill(work: Path) -> None:
    """Write the keys and each model's values, (captions, embed_dim), to memory.safetensors."""
    trainer = Trainer(work, seed=0)
    found = {"keys": trainer.embeddings[trainer.allowed]}
    for name, kind in IMAGE_TOWERS.items():
        tower = build_towers(MINI)[0].eval()
        tower.load_state_dict(load_file(work / f"{kind}.safetensors"))
        found[name] = _seen_by(tower, trainer)[trainer.allowed]
    with write_beside(work / "memory.safetensors") as temporary:
        save_file(found, temporary)


@torch.no_grad()
def _seen_by(tower: torch.nn.Module, trainer: Trainer) -> Tensor:
    """Return (captions, embed_dim): 0 where a caption has no training picture."""
    side: int = MINI["vision_cfg"]["image_size"]
    sums, counts = torch.zeros_like(trainer.embeddings), torch.zeros(len(trainer.captions))
    for rows in trainer.train.split(512):
        images = Pictures(trainer.pixels[rows], side).plain(torch.arange(len(rows)))
        captions = trainer.caption_of[rows]
        sums.index_add_(0, captions, F.normalize(tower(normalize(images)), dim=1))
        counts.index_add_(0, captions, torch.ones(len(rows)))
    means = sums[trainer.allowed] / counts[trainer.allowed, None]
    sums[trainer.allowed] = means - means.mean(dim=0)
    return sums


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    fill(parser.parse_args().work)
