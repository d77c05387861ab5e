"""Points of CLIP's space: between pictures, towards texts, and read from files.

They are used as in unCLIP (Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP
Latents", 2022, section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from numpy.lib.format import open_memmap
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from .base import ClipagModel
from .errors import ClipagError
from .targets import text_embeddings

EMBEDDING_FILES = (".npy", ".safetensors")
# What numpy and safetensors raise for files that are damaged or something else.
UNREADABLE = (OSError, ValueError, TypeError, SyntaxError, TokenError, OverflowError,
              RecursionError, SafetensorError)  # fmt: skip
SMALLEST_ANGLE = 1e-4  # radians; below it, slerp's formula divides by almost nothing


def slerp(start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
    """Interpolate spherically between unit-length embeddings (…, D) (Shoemake, 1985).

    Args:
        start: (…, D).
        end: (…, D).
        share: 0 returns `start`, 1 returns `end`; a number, or a tensor (…, 1).

    Returns:
        Unit-length embeddings (…, D). Between opposite points the way is not defined, and is any.
    """
    angle = (start * end).sum(dim=-1, keepdim=True).clamp(-1, 1).acos()
    angle = angle.clamp(SMALLEST_ANGLE, torch.pi - SMALLEST_ANGLE)
    point = ((1 - share) * angle).sin() * start + (share * angle).sin() * end
    return F.normalize(point, dim=-1)


def slerp_through(points: Tensor, places: Tensor) -> Tensor:
    """Interpolate along a path through K points.

    Args:
        points: unit-length embeddings (K, D), with K at least 2.
        places: where on the path, (N,), from 0 (the first point) to K − 1 (the last).

    Returns:
        Unit-length embeddings (N, D).
    """
    legs = places.long().clamp(0, len(points) - 2)
    return slerp(points[legs], points[legs + 1], (places - legs)[:, None].to(points))


@torch.no_grad()
def text_difference(
    model: ClipagModel, source_text: str, text: str, truncate: bool = False
) -> Tensor:
    """Return unCLIP's text diff norm(z_t − z_t0), (D,), from one text to another (section 3.3).

    Raises:
        ClipagError: a text is empty or too long, or both mean the same.
    """
    source, end = text_embeddings(model, [source_text, text], truncate)
    if (end - source).norm() < 1e-3:
        raise ClipagError(
            f"{text!r} and {source_text!r} mean the same to the model: name a change."
        )
    return F.normalize(end - source, dim=0)


@dataclass(frozen=True)
class PrincipalComponents:
    """A basis of embeddings in which the first coordinates matter most (PCA).

    Attributes:
        mean: (D,), of the embeddings that it was fitted on.
        directions: (K, D), orthonormal, by falling variance.
        variances: (K,), of the embeddings along each direction.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor

    @classmethod
    def fit(cls, embeddings: Tensor, count: int | None = None) -> "PrincipalComponents":
        """Fit `count` components, by default as many as there can be, to embeddings (N, D).

        Raises:
            ClipagError: there are no embeddings, they are not finite, or `count` is out of range.
        """
        if embeddings.ndim != 2 or len(embeddings) < 2:
            raise ClipagError("There are no two embeddings: components need a corpus of pictures.")
        if not embeddings.isfinite().all():
            raise ClipagError("The embeddings hold values that are not finite: encode them again.")
        most = min(len(embeddings) - 1, embeddings.shape[1])
        count = most if count is None else count
        if not 1 <= count <= most:
            raise ClipagError(
                f"`components` has {count}, but {len(embeddings)} embeddings of width "
                f"{embeddings.shape[1]} have at most {most}: choose fewer, or a larger corpus."
            )
        centred = embeddings.double() - embeddings.double().mean(dim=0)
        _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
        variances = lengths[:count] ** 2 / (len(embeddings) - 1)
        basis = (embeddings.double().mean(dim=0), directions[:count], variances)
        return cls(*(each.to(embeddings.dtype) for each in basis))

    def coordinates(self, embeddings: Tensor) -> Tensor:
        """Return the coordinates (B, K) of embeddings (B, D)."""
        return (embeddings - self.mean) @ self.directions.T

    def reconstruct(self, coordinates: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D) of the first coordinates, (B, k) with k ≤ K."""
        used = self.directions[: coordinates.shape[1]]
        return F.normalize(self.mean + coordinates @ used, dim=1)


def read_embeddings(path: Path) -> Tensor:
    """Read embeddings (D,) or (B, D) from a .npy file, or a .safetensors file of one tensor.

    Raises:
        ClipagError: the file is missing or is neither.
    """
    tensors: Sequence[Tensor]
    try:
        if path.suffix == ".npy":
            # Memory-mapped: a header that claims more than the file holds is refused at once.
            tensors = [torch.from_numpy(np.array(open_memmap(path, mode="r"), np.float32))]
        else:
            tensors = list(load_file(path).values())
    except FileNotFoundError as error:
        raise ClipagError(f"There is no file {path}.") from error
    except UNREADABLE as error:
        raise ClipagError(f"{path} does not hold embeddings: save them as .npy.") from error
    if len(tensors) != 1:
        raise ClipagError(f"{path} holds {len(tensors)} tensors: save the embeddings as one.")
    return tensors[0]
