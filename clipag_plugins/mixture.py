"""Starting images: a mixture of Gaussians over 16 × 16 pictures (CLIPAG supplement, 1.3)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from . import embedded
from .errors import ClipagError

SIDE = 16
VARIANCE = 1e-4  # added to every pixel's variance


@dataclass(frozen=True)
class GaussianMixture:
    """One Gaussian a class, with covariance factors·factorsᵀ + 1e-4·I.

    Attributes:
        means: (K, 768).
        factors: (K, 768, R); R is the rank that is kept of each class' covariance.
    """

    means: Tensor
    factors: Tensor

    def sample(self, per_class: int, generator: torch.Generator) -> Tensor:
        """Draw images (K · per_class, 3, 16, 16) in [0, 1]."""
        classes, pixels, rank = self.factors.shape
        along = torch.randn(classes, rank, per_class, generator=generator)
        grain = torch.randn(classes, per_class, pixels, generator=generator) * VARIANCE**0.5
        drawn = self.means[:, None] + (self.factors @ along).transpose(1, 2) + grain
        images: Tensor = drawn.reshape(-1, 3, SIDE, SIDE).clamp(0, 1)
        return images


def load(path: Path | None = None) -> GaussianMixture:
    """Load a mixture made by `finetune.embedded.starts`; by default the embedded one.

    Raises:
        ClipagError: the file is not such a mixture, or is damaged.
    """
    path = path or embedded.checked_path(embedded.read_config()["gmm"])
    try:
        state = load_file(path)
        mixture = GaussianMixture(state["means"].float(), state["factors"].float())
    except (SafetensorError, KeyError, OSError) as error:
        raise ClipagError(
            f"{path} is not a mixture made by clipag_plugins.finetune.gmm."
        ) from error
    means, factors = mixture.means, mixture.factors
    classes, pixels = means.shape[:1].numel(), 3 * SIDE * SIDE
    sound = means.shape == (classes, pixels) and factors.shape[:2] == means.shape
    if not (classes and sound and factors.ndim == 3):
        raise ClipagError(f"{path} is a mixture of other pictures than {SIDE} × {SIDE} ones.")
    if not (means.isfinite().all() and factors.isfinite().all()):
        raise ClipagError(f"{path} is damaged: it holds values that are not finite.")
    return mixture


def enlarge(images: Tensor, size: int) -> Tensor:
    """Resample (N, 3, 16, 16) up to (N, 3, size, size) in [0, 1]."""
    return F.interpolate(images, size=(size, size), mode="bicubic").clamp(0, 1)
