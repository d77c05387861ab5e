"""The views of VQGAN+CLIP, under the names of nerdyrodent's generate.py.

`latest` and `updatedpooling` take the whole image, shrunk by the mean of average and maximum
pooling. `original`, `updated` and `nrupdated` take random square crops, as Crowson does. All but
`original` then distort each view with kornia and add noise.
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
from clipag_plugins.defaults import CUT_AUGMENTS, CUT_METHODS, CUT_POWER
from clipag_plugins.errors import ClipagError
from clipag_plugins.views import noise_like

POOLED = ("latest", "updatedpooling")
NOISE = 0.1  # largest standard deviation of the noise, which is drawn for each view


@dataclass(frozen=True)
class Cutouts:
    """Random views of an image, as VQGAN+CLIP takes them; the `views` of a `Guide`.

    Args:
        count: views of each image.
        method: one of `defaults.CUT_METHODS`.
        augments: for `latest` and `nrupdated`, names of `AUGMENTS` in the order of their use.
        power: exponent of the random size of crops: above 1 small crops are more frequent.

    Raises:
        ClipagError: an argument is out of its range.
    """

    count: int = 32
    method: str = "latest"
    augments: Sequence[str] = ("Af", "Pe", "Ji", "Er")
    power: float = CUT_POWER

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_VIEWS:
            raise ClipagError(f"`count` is {self.count}: choose from 1 to {MOST_VIEWS}.")
        if self.method not in CUT_METHODS:
            raise ClipagError(f"`method` is {self.method!r}: choose from {', '.join(CUT_METHODS)}.")
        for name in self.augments:
            if name not in CUT_AUGMENTS:
                raise ClipagError(
                    f"`augments` names {name!r}: choose from {', '.join(CUT_AUGMENTS)}."
                )
        if not 0 < self.power < float("inf"):
            raise ClipagError(f"`power` is {self.power}: choose a number above 0.")

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return every view of every image, and each view's weight.

        Args:
            images: (B, 3, H, W) in [0, 1].
            size: side of the views, the image tower's own.

        Returns:
            Views (B, V, 3, size, size), and weights (V,) that sum to 1. Random numbers
            come from torch's global generator and are the same for every image of the batch.
        """
        state = torch.get_rng_state()
        batch = []
        for image in images:
            torch.set_rng_state(state)
            batch.append(self._views_of(image[None], size))
        return torch.stack(batch), images.new_full((self.count,), 1 / self.count)

    def _views_of(self, image: Tensor, size: int) -> Tensor:
        """Return the views (V, 3, size, size) of one image (1, 3, H, W)."""
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
        noisy: Tensor = views + strength * noise_like(views.shape, views)
        return noisy

    def _crop(self, image: Tensor, size: int) -> Tensor:
        """Return a random square crop of an image (1, 3, H, W), if possible not below `size`."""
        height, width = image.shape[-2:]
        largest = min(height, width)
        smallest = min(largest, size)
        side = int(float(torch.rand(())) ** self.power * (largest - smallest)) + smallest
        top = int(torch.randint(height - side + 1, ()))
        left = int(torch.randint(width - side + 1, ()))
        return image[..., top : top + side, left : left + side]


@cache
def _distortion(method: str, augments: tuple[str, ...], size: int) -> nn.Module:
    """Return the distortion that a method applies to its views, (V, 3, size, size)."""
    import kornia.augmentation as K  # imported late, since it takes a second

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


# They are made from kornia.augmentation. Some are weaker or stronger on pooled views.
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
