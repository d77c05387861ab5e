"""Views: the random copies of an image that a guide looks at.

A picture that only one exact framing makes similar to the text is an adversarial example;
one that stays similar under crops, shifts and other light is a picture. The transforms are
kornia's, in the arrangement of CLIPAG's notebook: global views of the whole image, and
patch views of random crops, which bring out detail.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import resample


@dataclass(frozen=True)
class Views:
    """How many views to take of each image, and of which kind.

    Args:
        global_views: copies of the whole image, shifted, rescaled and recoloured.
        patch_views: random square crops.
        patch: side of a crop, as a share of the image's side.
        patch_weight: weight of a patch view's loss; a global view's is 1.
        noise: standard deviation of Gaussian noise on every view.
        translate: largest shift, as a share of the side (DiffAugment: 0.125).
        scale: range of the rescaling (DiffAugment: 0.8 to 1.2).
        brightness, contrast, saturation: strength of the recolouring.
        cutout: side of the square that is blanked out, as a share of the side; 0 for none.
    """

    global_views: int = 32
    patch_views: int = 32
    patch: float = 128 / 224
    patch_weight: float = 5.0
    noise: float = 0.01
    translate: float = 0.125
    scale: tuple[float, float] = (0.8, 1.2)
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 1.0
    cutout: float = 0.5

    @cached_property
    def _transforms(self) -> tuple[nn.Module, nn.Module]:
        """What is done to global views and to patch views."""
        import kornia.augmentation as K  # here, since it takes a second to import

        jitter = K.ColorJiggle(
            (max(0.0, 1 - self.brightness), 1 + self.brightness),
            (max(0.0, 1 - self.contrast), 1 + self.contrast),
            (max(0.0, 1 - self.saturation), 1 + self.saturation),
            p=1.0 if self.brightness or self.contrast or self.saturation else 0.0,
        )
        pose = K.RandomAffine(
            0.0, (self.translate, self.translate), self.scale, padding_mode="border", p=1.0
        )
        area = self.cutout**2
        cut = K.RandomErasing((area, area), (1.0, 1.0), 0.5, p=1.0 if area else 0.0)
        return nn.Sequential(jitter, pose, cut), nn.Sequential(jitter, cut)

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return every view of every image, and each view's weight.

        Args:
            images: (B, 3, H, W) in [0, 1].
            size: side of the views, the image tower's own.

        Returns:
            Views (B, V, 3, size, size), and weights (V,) that sum to 1. Random numbers are
            torch's global ones and the same for every image of the batch, so a picture does
            not depend on its neighbours.
        """
        state = torch.get_rng_state()
        batch = []
        for image in images:
            torch.set_rng_state(state)
            batch.append(self._of(image[None], size))
        weights = images.new_ones(self.global_views + self.patch_views)
        weights[self.global_views :] = self.patch_weight
        return torch.stack(batch), weights / weights.sum()

    def _of(self, image: Tensor, size: int) -> Tensor:
        of_whole, of_part = self._transforms
        views = []
        if self.global_views:
            whole = resample(image, size).expand(self.global_views, -1, -1, -1)
            views.append(of_whole(whole))
        if self.patch_views:
            # Shrunk first so that a crop is about `size` pixels wide: cropping then needs
            # no filter, and the full image is filtered once instead of once a view.
            source = resample(image, min(*image.shape[-2:], round(size / self.patch)))
            views.append(of_part(self._crops(source, size)))
        result = torch.cat(views)
        if self.noise:
            result = result + self.noise * torch.randn(result.shape, dtype=result.dtype).to(result)
        return result

    def _crops(self, image: Tensor, size: int) -> Tensor:
        """Cut random squares out of one image by sampling a grid: any number at once."""
        n = self.patch_views
        pose = torch.zeros(n, 2, 3)
        pose[:, 0, 0] = pose[:, 1, 1] = self.patch
        pose[:, :, 2] = (torch.rand(n, 2) * 2 - 1) * (1 - self.patch)
        grid = F.affine_grid(pose.to(image), [n, 3, size, size], align_corners=False)
        return F.grid_sample(
            image.expand(n, -1, -1, -1), grid, padding_mode="border", align_corners=False
        )


def one_view(images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the image itself as its only view: guidance without augmentation."""
    return resample(images, size)[:, None], images.new_ones(1)
