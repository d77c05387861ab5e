"""Clean and robust accuracy on held-out data."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.attack import ThreatModel, pgd
from clipag_plugins.base import normalize


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] of pictures whose own text is among the `top` likeliest of `texts`."""

    clean: float
    robust: float
    pictures: int
    texts: int
    top: int


def evaluate(
    tower: nn.Module,
    texts: Tensor,
    images: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    top: int = 1,
    at_once: int = 128,
    scale: float = 100.0,
) -> Scores:
    """Classify images by texts, as they are and under a white-box attack.

    Args:
        tower: maps normalised images to embeddings.
        texts: unit-length embeddings (C, D).
        images: (N, 3, S, S) uint8.
        labels: (N,) numbers of the images' own texts.
        threat_model: of the attack, which raises the cross-entropy from a seeded random start.
        top: an image counts as a hit if its own text is among so many likeliest.
        at_once: images that are computed at once.
        scale: of the attack's logits. The default is CLIP's own.
    """
    generator, hits = torch.Generator().manual_seed(0), [0, 0]
    for chunk, label in zip(images.split(at_once), labels.split(at_once), strict=True):
        clean, truth = chunk.to(texts) / 255, label.to(texts.device)

        def logits(x: Tensor) -> Tensor:
            return scale * F.normalize(tower(normalize(x)).float(), dim=-1) @ texts.T

        def mismatch(x: Tensor, truth: Tensor = truth) -> Tensor:
            return F.cross_entropy(logits(x), truth, reduction="sum")

        attacked = pgd(clean, mismatch, threat_model, generator)
        for version, x in enumerate((clean, attacked)):
            with torch.no_grad():
                best = logits(x).topk(min(top, len(texts)), dim=1).indices
            hits[version] += int((best == truth[:, None]).any(dim=1).sum())
    clean_share, robust_share = (count / len(images) for count in hits)
    return Scores(clean_share, robust_share, len(images), len(texts), top)
