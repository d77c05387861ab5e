"""Randomized smoothing: the baseline that the paper compares with CLIPAG (section 3, Figure 3).

    smoothed = smooth(load_model("clip-mini"), sigma=0.25, samples=16)

A smoothed model averages its embeddings over Gaussian noise on the images, and thereby also its
gradient (Cohen et al., "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019,
eq. 1).
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
    """An image tower whose output is the mean of its unit-length embeddings of noisy copies.

    The product of this mean with a unit-length text embedding is the mean cosine similarity of the
    copies. Each image takes the memory and time of `samples` images.
    """

    def __init__(self, visual: Any, sigma: float, samples: int, seed: int):
        super().__init__(visual, visual.native_size, visual.output_dim)
        self.input_resolution = visual.input_resolution
        self.sigma = sigma
        self.samples = samples
        # Not a torch.Generator, which cannot be copied together with the module.
        self.next_seed = seed

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings (B, output_dim), of length ≤ 1, of normalised images."""
        # Resize before adding noise: resizing afterwards would average most of the noise away.
        image = resample(image, self.native_size)
        generator = torch.Generator().manual_seed(self.next_seed)
        self.next_seed += 1
        noise = torch.randn((self.samples, *image.shape), generator=generator).to(image)
        spread = self.sigma / image.new_tensor(CLIP_STD).view(3, 1, 1)
        embeddings = F.normalize(self.tower((image + noise * spread).flatten(0, 1)), dim=-1)
        mean: Tensor = embeddings.view(self.samples, len(image), -1).mean(dim=0)
        return mean


def smooth(model: ClipagModel, sigma: float, samples: int, seed: int = 0) -> ClipagModel:
    """Return a model whose `encode_image` is averaged over Gaussian noise, differentiable.

    The result shares its weights with `model`, which does not change, and can be used like any
    model: by `Guide`, `generate`, `pgd`. Each call draws new noise; the same seed gives the same
    sequence of noise. Smoothing has no weights, so to save the result, save `model`.

    Args:
        model: the model to smooth.
        sigma: standard deviation of the noise, for images in [0, 1] that have the tower's native
            size.
        samples: number of noisy copies of each image.
        seed: of the noise.

    Raises:
        ClipagError: `sigma` is negative or not finite, or `samples` is less than 1.
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ClipagError(f"`sigma` is {sigma}: give a standard deviation of 0 or more.")
    if samples < 1:
        raise ClipagError(f"`samples` is {samples}: there must be at least 1 noisy copy.")
    smoothed = copy.copy(model)
    # copy.copy shares this dictionary; without a new one, `model.visual` would change as well.
    smoothed._modules = dict(model._modules)
    smoothed.visual = SmoothedTower(model.visual, sigma, samples, seed)
    return smoothed
