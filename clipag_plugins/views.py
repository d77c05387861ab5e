"""Views: the randomly augmented copies of an image that the image tower sees.

An image that is similar to the text in one exact framing only is an adversarial example. An image
that stays similar under crops, shifts and changes of light is a picture. The transforms are
kornia's, arranged as in CLIPAG's notebook: global views of the whole image, and patch views of
random crops, which bring out detail.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import resample


class MakeViews(Protocol):
    """What turns images into views: `Views`, `one_view`, or your own."""

    @property
    def count(self) -> int:
        """Number of views of one image, V."""

    def __call__(self, images: Tensor, size: int, /) -> tuple[Tensor, Tensor]:
        """Return views (B, V, 3, size, size) of images (B, 3, H, W), and weights (V,)."""


@dataclass(frozen=True)
class Views:
    """The number of views of each image, and their augmentations.

    Args:
        global_views: copies of the whole image, shifted, rescaled and colour-jittered.
        patch_views: random square crops.
        patch: side of a crop, as a share of the image's shorter side.
        patch_weight: weight of a patch view's loss; a global view's is 1.
        noise: standard deviation of Gaussian noise on every view.
        translate: largest shift, as a share of the side (DiffAugment: 0.125).
        scale: range of the rescaling (DiffAugment: 0.8 to 1.2).
        brightness, contrast, saturation: strengths of the colour jitter.
        cutout: side of the square that is blanked, as a share of the image's side; 0 for none.
        perspective: how far a crop's corners move inwards, as a share of half its side: the
            `distortion_scale` of torchvision's RandomPerspective (CLIPStyler: 0.5).
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
    perspective: float = 0.0

    @property
    def count(self) -> int:
        """Number of views of one image."""
        return self.global_views + self.patch_views

    @cached_property
    def _transforms(self) -> tuple[list[Any], list[Any]]:
        """The transforms of global views and of patch views; those of strength 0 are left out."""
        import kornia.augmentation as K  # takes a second to import, so only when needed

        jitter, pose, cut, tilt = [], [], [], []
        if self.brightness or self.contrast or self.saturation:
            ranges = [
                (max(0.0, 1 - strength), 1 + strength)
                for strength in (self.brightness, self.contrast, self.saturation)
            ]
            jitter = [K.ColorJiggle(*ranges, p=1.0)]
        if self.translate or self.scale != (1.0, 1.0):
            translate = (self.translate, self.translate)
            pose = [K.RandomAffine(0.0, translate, self.scale, padding_mode="border", p=1.0)]
        if self.cutout:
            area = self.cutout**2
            cut = [K.RandomErasing((area, area), (1.0, 1.0), 0.5, p=1.0)]
        if self.perspective:
            tilt = [K.RandomPerspective(self.perspective, p=1.0)]
        return jitter + pose + cut, tilt + jitter + cut

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return every view of every image, and each view's weight.

        Args:
            images: (B, 3, H, W) in [0, 1].
            size: side of the views, the image tower's own.

        Returns:
            Views (B, V, 3, size, size), and weights (V,) that sum to 1. Random numbers come from
            torch's global generator. They are the same for every image of the batch, so that a
            picture does not depend on its neighbours.
        """
        global_transforms, patch_transforms = self._transforms
        views = []
        if self.global_views:
            views.append(same_for_all_images(global_transforms, self._wholes(images, size)))
        if self.patch_views:
            # Shrink first, so that a crop is about `size` pixels wide. Cropping then needs no
            # filter, and the full image is filtered once instead of once for each view.
            height, width = images.shape[-2:]
            scale = min(1.0, round(size / self.patch) / min(height, width))
            source = resample(images, (round(height * scale), round(width * scale)))
            views.append(same_for_all_images(patch_transforms, self._crops(source, size)))
        result = torch.cat(views, dim=1)
        if self.noise:
            noise = torch.randn(result.shape[1:], dtype=result.dtype)
            result = result + self.noise * noise.to(result.device)
        weights = images.new_ones(self.count)
        weights[self.global_views :] = self.patch_weight
        return result, weights / weights.sum()

    def _wholes(self, images: Tensor, size: int) -> Tensor:
        """Return the whole of each image, (B, global_views, 3, size, size).

        An image that is not square would be distorted. Of such an image each view is a square that
        is as wide as the shorter side, at a random place.
        """
        height, width = images.shape[-2:]
        if height == width:
            return resample(images, size)[:, None].expand(-1, self.global_views, -1, -1, -1)
        side = min(height, width)
        windows = []
        for place in torch.rand(self.global_views).tolist():
            top, left = (round(place * (length - side)) for length in (height, width))
            windows.append(resample(images[..., top : top + side, left : left + side], size))
        return torch.stack(windows, dim=1)

    def _crops(self, images: Tensor, size: int) -> Tensor:
        """Cut random squares out of each image, all at once, by sampling a grid."""
        b, n = len(images), self.patch_views
        height, width = images.shape[-2:]
        wide, high = (self.patch * min(height, width) / side for side in (width, height))
        pose = torch.zeros(n, 2, 3)
        pose[:, 0, 0], pose[:, 1, 1] = wide, high
        pose[:, :, 2] = (torch.rand(n, 2) * 2 - 1) * torch.tensor([1 - wide, 1 - high])
        grid = F.affine_grid(pose.to(images), [n, 3, size, size], align_corners=False)
        # All crops of an image form one tall grid, so that the image is not copied for each.
        tall = grid.view(1, n * size, size, 2).expand(b, -1, -1, -1)
        crops = F.grid_sample(images, tall, padding_mode="border", align_corners=False)
        views: Tensor = crops.unflatten(2, (n, size)).transpose(1, 2)
        return views


def same_for_all_images(transforms: list[Any], views: Tensor) -> Tensor:
    """Apply kornia's transforms to views (B, V, 3, H, W).

    Each of the V views gets its own random numbers, which are the same for all B images.
    """
    b, v = views.shape[:2]
    flat = views.flatten(0, 1)
    for transform in transforms:
        drawn = transform.forward_parameters(torch.Size((v, *flat.shape[1:])))
        # All that kornia draws is one number or row a view, except these two.
        repeated = {
            key: value
            if key in ("order", "forward_input_shape")
            else value.repeat(b, *[1] * (value.ndim - 1))
            for key, value in drawn.items()
        }
        flat = transform(flat, params=repeated)
    views = flat.unflatten(0, (b, v))
    return views


class OneView:
    """The image itself as its only view: guidance without augmentation."""

    count = 1

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return views (B, 1, 3, size, size) of images (B, 3, H, W), and the weight (1,)."""
        return resample(images, size)[:, None], images.new_ones(1)


one_view = OneView()
