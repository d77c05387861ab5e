"""Randomized smoothing: the baseline that the paper shows beside CLIPAG (section 3, Figure 3).

    smoothed = smooth(load_model("clip-mini"), sigma=0.25, samples=16)

A model averaged over Gaussian noise on its images (Cohen et al., "Certified Adversarial
Robustness via Randomized Smoothing", ICML 2019, eq. 1), so its gradient is averaged too.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import CLIP_STD, ClipagModel, ImageTower, resample
from .errors import ClipagError


class SmoothedTower(ImageTower):
    """An image tower seen through noise: the mean of its unit-length embeddings.

    Its product with a unit text embedding is the mean cosine similarity over the noisy
    copies. Memory and time are those of `samples` images for each.
    """

    def __init__(self, visual: Any, sigma: float, samples: int, seed: int):
        super().__init__(visual, visual.native_size, visual.output_dim)
        self.input_resolution = visual.input_resolution
        self.sigma = sigma
        self.samples = samples
        # A number, not a torch.Generator: those cannot be copied with the module.
        self.next_seed = seed

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings (B, output_dim), of length ≤ 1, of normalised images."""
        # Before the noise: afterwards it would average most of it away.
        image = resample(image, self.native_size)
        generator = torch.Generator().manual_seed(self.next_seed)
        self.next_seed += 1
        noise = torch.randn((self.samples, *image.shape), generator=generator).to(image)
        spread = self.sigma / image.new_tensor(CLIP_STD).view(3, 1, 1)
        z = self.tower((image + noise * spread).flatten(0, 1))
        mean: Tensor = F.normalize(z, dim=-1).view(self.samples, len(image), -1).mean(dim=0)
        return mean


def smooth(model: ClipagModel, sigma: float, samples: int, seed: int = 0) -> ClipagModel:
    """Return a model whose `encode_image` is averaged over Gaussian noise, differentiable.

    It shares the weights of `model`, which stays as it is, and goes wherever a model goes:
    to `Guide`, `generate`, `pgd`. Every call draws new noise, the same in the same order from
    the same seed. To save it, save `model`: smoothing has no weights of its own.

    Args:
        model: the model to smooth.
        sigma: standard deviation of the noise, for images in [0, 1] of the tower's own
            side.
        samples: noisy copies of each image.
        seed: where the noise comes from.

    Raises:
        ClipagError: `sigma` is negative or not finite, `samples` is below 1, or torch does not
            take the seed.
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ClipagError(f"sigma is {sigma}: give a standard deviation, 0 or more.")
    if samples < 1:
        raise ClipagError(f"samples is {samples}: there must be at least 1 noisy copy.")
    smoothed = copy.copy(model)
    # The copy shares the dictionary of its parts with the original otherwise.
    smoothed._modules = dict(model._modules)
    smoothed.visual = SmoothedTower(model.visual, sigma, samples, seed)
    return smoothed
