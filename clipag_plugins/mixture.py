"""Starting images: a mixture of Gaussians over 16 × 16 pictures (CLIPAG supplement, 1.3)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from . import embedded, quantization
from .errors import ClipagError

SIDE = 16
VARIANCE = 1e-4  # added to every pixel's variance


@dataclass(frozen=True)
class GaussianMixture:
    """One Gaussian for each of K classes, with covariance factors·factorsᵀ + 1e-4·I.

    Attributes:
        means: (K, 768), of flattened 3 × 16 × 16 images in [0, 1].
        factors: (K, 768, R), where R is the rank of the covariance's first term.
    """

    means: Tensor
    factors: Tensor

    def sample(self, per_class: int, generator: torch.Generator) -> Tensor:
        """Draw images (K · per_class, 3, 16, 16) in [0, 1]."""
        classes, pixels, rank = self.factors.shape
        coefficients = torch.randn(classes, rank, per_class, generator=generator)
        noise = torch.randn(classes, per_class, pixels, generator=generator) * VARIANCE**0.5
        samples = self.means[:, None] + (self.factors @ coefficients).transpose(1, 2) + noise
        images: Tensor = samples.reshape(-1, 3, SIDE, SIDE).clamp(0, 1)
        return images


def load(path: Path | None = None) -> GaussianMixture:
    """Load a mixture that `finetune.embedded.starts` made, by default the embedded one.

    Raises:
        ClipagError: the file is not such a mixture, or is damaged.
    """
    path = path or embedded.checked_path(embedded.read_config()["gmm"])
    try:
        state = quantization.dequantize(load_file(path), str(path))
        mixture = GaussianMixture(state["means"].float(), state["factors"].float())
    except (SafetensorError, KeyError, OSError) as error:
        raise ClipagError(
            f"{path} is not a mixture of Gaussians: make one with "
            "python -m clipag_plugins.finetune.embedded.starts."
        ) from error
    means, factors = mixture.means, mixture.factors
    classes, pixels = means.shape[:1].numel(), 3 * SIDE * SIDE
    shapes_match = means.shape == (classes, pixels) and factors.shape[:2] == means.shape
    if not (classes and shapes_match and factors.ndim == 3):
        raise ClipagError(
            f"{path} is not a mixture of {SIDE} × {SIDE} pictures: make one with "
            "python -m clipag_plugins.finetune.embedded.starts."
        )
    if not (means.isfinite().all() and factors.isfinite().all()):
        raise ClipagError(f"{path} is damaged: it holds values that are not finite.")
    return mixture


def enlarge(images: Tensor, size: int) -> Tensor:
    """Resize images (N, 3, 16, 16) to (N, 3, size, size), clamped to [0, 1]."""
    return F.interpolate(images, size=(size, size), mode="bicubic").clamp(0, 1)
