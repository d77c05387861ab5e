"""The views of VQGAN+CLIP, by the names that nerdyrodent's generate.py gives them.

Two kinds: `latest` and `updatedpooling` look at the whole image every time, shrunk by the mean of
average and maximum pooling; `original`, `updated` and `nrupdated` look at random square crops
(Crowson's). All but `original` then distort each view by kornia, and add noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.arguments import MOST_VIEWS
from clipag_plugins.base import resample
from clipag_plugins.errors import ClipagError

METHODS = ("latest", "original", "updated", "nrupdated", "updatedpooling")
POOLED = ("latest", "updatedpooling")
NOISE = 0.1  # largest standard deviation of the noise; each view draws its own


@dataclass(frozen=True)
class Cutouts:
    """Random views of an image, as VQGAN+CLIP's users know them; a guide's `views`.

    Args:
        count: views of each image.
        method: one of `METHODS`.
        augments: for `latest` and `nrupdated`, names of `AUGMENTS` in the order they are applied.
        power: of crops: above 1 they are rather small, below 1 rather large.

    Raises:
        ClipagError: an argument is out of its range.
    """

    count: int = 32
    method: str = "latest"
    augments: Sequence[str] = ("Af", "Pe", "Ji", "Er")
    power: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_VIEWS:
            raise ClipagError(f"views is {self.count}: choose from 1 to {MOST_VIEWS}.")
        if self.method not in METHODS:
            raise ClipagError(
                f"The cut method is {self.method!r}: choose from {', '.join(METHODS)}."
            )
        for name in self.augments:
            if name not in AUGMENTS:
                raise ClipagError(
                    f"The augmentation is {name!r}: choose from {', '.join(AUGMENTS)}."
                )
        if not 0 < self.power < float("inf"):
            raise ClipagError(f"The cut power is {self.power}: choose a number above 0.")

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return every view of every image, and each view's weight.

        Args:
            images: (B, 3, H, W) in [0, 1].
            size: side of the views, the image tower's own.

        Returns:
            Views (B, V, 3, size, size), and weights (V,) that sum to 1. Random numbers are
            torch's global ones and the same for every image of the batch.
        """
        state = torch.get_rng_state()
        batch = []
        for image in images:
            torch.set_rng_state(state)
            batch.append(self._of(image[None], size))
        return torch.stack(batch), images.new_full((self.count,), 1 / self.count)

    def _of(self, image: Tensor, size: int) -> Tensor:
        if self.method in POOLED:
            pooled = F.adaptive_avg_pool2d(image, size) + F.adaptive_max_pool2d(image, size)
            views = (pooled / 2).expand(self.count, -1, -1, -1)
        else:
            views = torch.cat([resample(self._crop(image, size), size) for _ in range(self.count)])
        if self.method == "original":
            return views
        distort = _distortion(self.method, tuple(self.augments), size)
        views = distort(views)
        strength = torch.rand(self.count, 1, 1, 1).to(views) * NOISE
        noisy: Tensor = views + strength * torch.randn(views.shape).to(views)
        return noisy

    def _crop(self, image: Tensor, size: int) -> Tensor:
        height, width = image.shape[-2:]
        largest = min(height, width)
        smallest = min(largest, size)
        side = int(float(torch.rand(())) ** self.power * (largest - smallest)) + smallest
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        return image[..., top : top + side, left : left + side]


@cache
def _distortion(method: str, augments: tuple[str, ...], size: int) -> nn.Module:
    """Return what a method does to its views, (V, 3, size, size)."""
    import kornia.augmentation as K  # here, since it takes a second to import

    if method == "updated":
        return nn.Sequential(
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(hue=0.01, saturation=0.01, p=0.7),
            K.RandomSharpness(0.3, p=0.4),
            K.RandomAffine(30, (0.1, 0.1), p=0.8, padding_mode="border"),
            K.RandomPerspective(0.2, p=0.4),
        )
    if method == "updatedpooling":
        return nn.Sequential(
            K.RandomAffine(15, (0.1, 0.1), p=0.7, padding_mode="border"),
            K.RandomPerspective(0.7, p=0.7),
            K.ColorJitter(hue=0.1, saturation=0.1, p=0.7),
            AUGMENTS["Er"](K, True, size),
        )
    return nn.Sequential(*(AUGMENTS[name](K, method in POOLED, size) for name in augments))


# Each is made from kornia.augmentation; some are milder or wilder on pooled views.
AUGMENTS: dict[str, Callable[[Any, bool, int], nn.Module]] = {
    "Ji": lambda K, pooled, size: K.ColorJitter(0.1, 0.1, 0.1, 0.1, p=0.7),
    "Sh": lambda K, pooled, size: K.RandomSharpness(0.3, p=0.5),
    "Gn": lambda K, pooled, size: K.RandomGaussianNoise(0.0, 1.0, p=0.5),
    "Pe": lambda K, pooled, size: K.RandomPerspective(0.7 if pooled else 0.5, p=0.7),
    "Ro": lambda K, pooled, size: K.RandomRotation(15, p=0.7),
    "Af": lambda K, pooled, size: K.RandomAffine(
        15 if pooled else 30, (0.1, 0.1), shear=5, p=0.7, padding_mode="zeros"
    ),
    "Et": lambda K, pooled, size: K.RandomElasticTransform(p=0.7),
    "Ts": lambda K, pooled, size: K.RandomThinPlateSpline(0.8, same_on_batch=True, p=0.7),
    "Cr": lambda K, pooled, size: K.RandomCrop(
        (size, size), pad_if_needed=True, padding_mode="reflect", p=0.5
    ),
    "Er": lambda K, pooled, size: K.RandomErasing(
        (0.1, 0.4), (0.3, 1 / 0.3), same_on_batch=True, p=0.7
    ),
    "Re": lambda K, pooled, size: K.RandomResizedCrop(
        (size, size), (0.1, 1.0), (0.75, 4 / 3), cropping_mode="resample", p=0.5
    ),
}
