"""Compute the space that a fine tower and texts share, and the concepts that lie in it.

A concept is a caption, whose pictures the corpus has, or one of ImageNet's classes, which the tower
was trained on before. Their directions are those by which a linear discriminant tells them apart:
the captions' mean features and the classifier's rows, both measured where the features of one
caption's pictures scatter evenly. The space keeps the principal components of all directions.
Nothing is trained.

A text recalls the concepts whose captions and names are like it (`mini.TwoScaleTextTower`). So it
asks only for what pictures can have. The embedding of a text alone does not: the tower drew none of
ImageNet's classes by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipag_plugins.base import normalize
from clipag_plugins.finetune.embedded import corpus, trunk
from clipag_plugins.finetune.embedded.image_tower import Pictures, embed_texts, load_text_tower
from clipag_plugins.finetune.embedded.pack import class_names
from clipag_plugins.finetune.embedded.recipe import FINE, MINI
from clipag_plugins.lite import FEATURES, LiteTower

# Share of an even scatter that is mixed into the measured one, which has fewer pictures than it
# would need.
SHRINKAGE = 0.1
BATCH = 64


@dataclass(frozen=True)
class Space:
    """A linear map of features into the space, and where the concepts lie there.

    Attributes:
        weight, bias: of the map, (D, 1280) and (D,).
        captions: (C, D), of unit length.
        classes: (1000, D), of unit length.
    """

    weight: Tensor
    bias: Tensor
    captions: Tensor
    classes: Tensor


def fit(features: Tensor, caption_of: Tensor, rows: Tensor, embed_dim: int) -> Space:
    """Fit the space.

    Args:
        features: (N, 1280) of pictures.
        caption_of: (N,) numbers of their captions, of which each has a picture.
        rows: (1000, 1280) of the classifier.
        embed_dim: D, the width of the space.
    """
    features, rows = features.double(), rows.double()
    counts = torch.bincount(caption_of)[:, None]
    means = features.new_zeros(len(counts), FEATURES).index_add_(0, caption_of, features) / counts
    deviations = features - means[caption_of]
    scatter = deviations.T @ deviations / len(features)
    even = scatter.trace() / FEATURES * torch.eye(FEATURES, dtype=scatter.dtype)
    variances, axes = torch.linalg.eigh(scatter.lerp(even, SHRINKAGE))
    whiten, unwhiten = (
        axes @ scale.diag() @ axes.T for scale in (variances.rsqrt(), variances.sqrt())
    )
    centre = means.mean(dim=0)
    # A row multiplies features, so what it means for whitened features is the inverse.
    captions, classes = (means - centre) @ whiten, (rows - rows.mean(dim=0)) @ unwhiten
    directions = torch.cat([F.normalize(each, dim=1) for each in (captions, classes)])
    components = torch.linalg.svd(directions, full_matrices=False).Vh[:embed_dim].T
    weight = (whiten @ components).T
    return Space(
        weight.float(),
        (-weight @ centre).float(),
        F.normalize(captions @ components, dim=1).float(),
        F.normalize(classes @ components, dim=1).float(),
    )


def build_concepts(work: Path, towers: Sequence[LiteTower]) -> dict[str, Tensor]:
    """Return what the towers share, as the embedded weights hold it.

    The space is fitted on the features of all towers together, so it is made of what they agree
    on, and no tower has concepts of its own.

    Args:
        work: folder with the corpus and the text tower.
        towers: of one trunk, plain and robust.

    Returns:
        "weight" and "bias" of the towers' heads; "captions" (C, D) and "classes" (1000, D), where
        they lie; "names" (M, D), embeddings of the classes' names, and "class_of_name" (M,).
    """
    pixels, pictures = corpus.load(work)
    train = [i for i, picture in enumerate(pictures) if picture.split == "train"]
    numbers = {c: n for n, c in enumerate(sorted({pictures[i].caption for i in train}))}
    caption_of = torch.tensor([numbers[pictures[i].caption] for i in train])
    features = torch.cat([_features(tower, pixels, train) for tower in towers])
    _, classifier = trunk.read(FINE["vision_cfg"]["fine"], MINI["embed_dim"])
    space = fit(
        features, caption_of.repeat(len(towers)), classifier.weight.detach(), MINI["embed_dim"]
    )
    names = class_names()
    return {
        **vars(space),
        "names": embed_texts(load_text_tower(work), [name for group in names for name in group]),
        "class_of_name": torch.tensor(
            [n for n, group in enumerate(names) for _ in group], dtype=torch.int16
        ),
    }


@torch.no_grad()
def _features(tower: LiteTower, pixels: np.ndarray, rows: Sequence[int]) -> Tensor:
    """Return the features (N, 1280) of pictures on white."""
    side: int = FINE["vision_cfg"]["image_size"]
    parts = []
    for some in torch.tensor(rows).split(BATCH):
        images = Pictures(torch.from_numpy(pixels[some.numpy()]), side).plain(
            torch.arange(len(some))
        )
        parts.append(
            tower.features(normalize(images).contiguous(memory_format=torch.channels_last))
        )
    return torch.cat(parts)
