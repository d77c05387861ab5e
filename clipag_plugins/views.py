"""Views: the randomly augmented copies of an image that the image tower sees.

An image that is similar to the text in one exact framing only is an adversarial example. An image
that stays similar under crops, shifts and changes of light is a picture. The transforms are those
of CLIPAG's notebook: global views of the whole image, and patch views of random crops, which bring
out detail.

The notebook composes kornia's ColorJiggle, RandomAffine, RandomPerspective and RandomErasing. The
same distributions are computed here in a few operations for all views at once. Even the random
numbers are drawn in kornia's order, so that a seed stands for the same views in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .arguments import FIRST_TOO_LARGE_SEED
from .base import resample

MOST_DRAWN_FOR_GPU = 2**20  # numbers: some milliseconds


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
        views = []
        if self.global_views:
            wholes = self._jittered(self._wholes(images, size), self.global_views)
            views.append(self._cut(self._moved(wholes)))
        if self.patch_views:
            # Shrink first, so that a crop is about `size` pixels wide. Cropping then needs no
            # filter, and the full image is filtered once instead of once for each view.
            height, width = images.shape[-2:]
            scale = min(1.0, round(size / self.patch) / min(height, width))
            source = resample(images, (round(height * scale), round(width * scale)))
            crops = self._jittered(self._crops(source, size), self.patch_views)
            views.append(self._cut(crops))
        result = torch.cat(views, dim=1)
        if self.noise:
            noise = noise_like(result.shape[1:], result)
            result = torch.add(result, noise, alpha=self.noise)
        weights = images.new_ones(self.count)
        weights[self.global_views :] = self.patch_weight
        return result, weights / weights.sum()

    def _wholes(self, images: Tensor, size: int) -> Tensor:
        """Return the whole of each image, (B, global_views or 1, 3, size, size).

        An image that is not square would be distorted. Of such an image each view is a square that
        is as wide as the shorter side, at a random place.
        """
        height, width = images.shape[-2:]
        if height == width:
            return resample(images, size)[:, None]
        side = min(height, width)
        windows = []
        for place in torch.rand(self.global_views).tolist():
            top, left = (round(place * (length - side)) for length in (height, width))
            windows.append(resample(images[..., top : top + side, left : left + side], size))
        return torch.stack(windows, dim=1)

    def _crops(self, images: Tensor, size: int) -> Tensor:
        """Cut random squares out of each image, in perspective; (B, patch_views, 3, size, size)."""
        height, width = images.shape[-2:]
        wide, high = (self.patch * min(height, width) / side for side in (width, height))
        middles = torch.rand(self.patch_views, 2) * 2 - 1
        middles = (middles * torch.tensor([1 - wide, 1 - high])).to(images)
        if not self.perspective:
            centres = _centres(size, images)
            x, y = centres * wide + middles[:, :1], centres * high + middles[:, 1:]
            return _sampled(images[:, None], _grid(x, y))
        corners = torch.rand(self.patch_views, 4, 2) * self.perspective
        inside = _projected(homographies(corners, size).to(images), size)
        grid = inside * inside.new_tensor([wide, high]) + middles[:, None, None]
        # As if each crop were distorted in turn: outside it is black, with a bilinear edge.
        edge = ((size * (1 - inside.abs()) + 1) / 2).clamp(0, 1).prod(dim=-1)
        return _sampled(images[:, None], grid) * edge[:, None]

    def _jittered(self, views: Tensor, count: int) -> Tensor:
        """Change the colours of views (B, count or 1, 3, S, S); return (B, count or 1, 3, S, S)."""
        strengths = torch.tensor([self.brightness, self.contrast, self.saturation])
        if not strengths.any():
            return views
        numbers, order = torch.rand(4, count), torch.randperm(4).tolist()
        least, largest = (1 - strengths).clamp_min(0)[:, None], 1 + strengths[:, None]
        # The hue, which is the third of kornia's numbers and of its steps, does not change.
        factors = (least + numbers[[0, 1, 3]] * (largest - least)).to(views)
        steps = [step for step in order if step < 3 and strengths[step]]
        return jitter(views, factors, steps)

    def _moved(self, views: Tensor) -> Tensor:
        """Shift and rescale views (B, global_views or 1, 3, S, S)."""
        if not self.translate and self.scale == (1.0, 1.0):
            return views.expand(-1, self.global_views, -1, -1, -1)
        _, zoom, *shift = torch.rand(4, self.global_views, 1).to(
            views
        )  # kornia's first is an angle
        zoom = self.scale[0] + zoom * (self.scale[1] - self.scale[0])
        centres = _centres(views.shape[-1], views)
        # The side is 2 wide in these coordinates.
        x, y = ((centres - 2 * self.translate * (2 * each - 1)) / zoom for each in shift)
        return _sampled(views, _grid(x, y))

    def _cut(self, views: Tensor) -> Tensor:
        """Blank a random square of each of views (B, V, 3, S, S)."""
        if not self.cutout:
            return views
        size = views.shape[-1]
        side = min(max(1, round(self.cutout * size)), size)
        numbers = torch.rand(4, views.shape[1], 1)[2:]  # kornia's first two are area and aspect
        first = (numbers * (size - side + 1)).floor().to(views.device)
        place = torch.arange(size, device=views.device)
        across, down = (place >= first) & (place < first + side)  # (V, S) each
        return views.masked_fill(down[:, None, :, None] & across[:, None, None, :], 0.5)


def noise_like(shape: torch.Size, like: Tensor) -> Tensor:
    """Return Gaussian noise of a shape, with the device and the type of another tensor.

    The CPU draws it, so that a picture depends little on the device. But a GPU would wait for large
    noise longer than for all else, so it draws that itself, from a seed that the CPU draws.
    """
    if like.is_cuda and shape.numel() > MOST_DRAWN_FOR_GPU:
        seed = int(torch.randint(FIRST_TOO_LARGE_SEED - 1, ()))
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    return torch.randn(shape, dtype=like.dtype).to(like.device)


def _centres(size: int, like: Tensor) -> Tensor:
    """Return where the pixels of a side are, (size,), if its outer edges are at -1 and 1."""
    return (2 * torch.arange(size, dtype=like.dtype, device=like.device) + 1) / size - 1


def _grid(x: Tensor, y: Tensor) -> Tensor:
    """Return the points (V, S, S, 2) that have the columns' x and the rows' y, (V, S) each."""
    size = x.shape[1]
    return torch.stack([x[:, None].expand(-1, size, -1), y[..., None].expand(-1, -1, size)], dim=-1)


def _sampled(views: Tensor, grid: Tensor) -> Tensor:
    """Sample views (B, V or 1, 3, H, W) at the points of a grid (V, S, S, 2); repeat the border."""
    b, v, size = len(views), len(grid), grid.shape[1]
    if views.shape[1] == 1:
        # All grids of an image form one tall grid, so that the image is not copied for each.
        tall = grid.view(1, v * size, size, 2).expand(b, -1, -1, -1)
        flat = F.grid_sample(views[:, 0], tall, padding_mode="border", align_corners=False)
        sampled: Tensor = flat.unflatten(2, (v, size)).transpose(1, 2)
    else:
        each = grid.expand(b, -1, -1, -1, -1).flatten(0, 1)
        flat = F.grid_sample(views.flatten(0, 1), each, padding_mode="border", align_corners=False)
        sampled = flat.unflatten(0, (b, v))
    return sampled


def homographies(offsets: Tensor, size: int) -> Tensor:
    """Return what maps the points of views in perspective to those of the views before, (V, 3, 3).

    Outer edges are at -1 and 1. The centre of a corner's pixel moves by the offset.

    Args:
        offsets: how far the corners move inwards, as a share of half the side, (V, 4, 2); clockwise
            from the upper left, x before y.
        size: side of the views.
    """
    inwards = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=torch.float64)
    before = -inwards * (1 - 1 / size)
    after = before + offsets.double() * inwards
    # A corner (x, y) that was at (u, v) gives two equations in the entries a to h:
    # (g x + h y + 1) u = a x + b y + c, and (g x + h y + 1) v = d x + e y + f.
    known = F.pad(after, (0, 1), value=1.0)
    nothing = torch.zeros_like(known)
    equations = [
        torch.cat([known, nothing, -after * before[:, :1]], dim=-1),
        torch.cat([nothing, known, -after * before[:, 1:]], dim=-1),
    ]
    corners = before.T.reshape(8, 1).expand(len(after), -1, -1)
    entries = torch.linalg.solve(torch.cat(equations, dim=1), corners)
    return F.pad(entries[..., 0], (0, 1), value=1.0).view(-1, 3, 3)


def _projected(maps: Tensor, size: int) -> Tensor:
    """Return where homographies (V, 3, 3) map the pixels of a square to, (V, size, size, 2)."""
    x = _centres(size, maps)
    y = x[:, None]
    row = maps[..., None, None].unbind(1)  # three of (V, 3, 1, 1)
    across, down, depth = (r[:, 0] * x + (r[:, 1] * y + r[:, 2]) for r in row)
    return torch.stack([across / depth, down / depth], dim=-1)


def jitter(views: Tensor, factors: Tensor, steps: Sequence[int]) -> Tensor:
    """Change the colours of views (B, V or 1, 3, S, S) in [0, 1]; return (B, V, 3, S, S).

    Args:
        factors: of brightness, contrast and saturation, (3, V), 1 for no change. Brightness adds
            its factor less 1 to all channels, contrast multiplies them, and saturation multiplies
            that of HSV. Then colours are clamped to [0, 1].
        steps: which of the three to do in which order, by number.
    """
    brightness, contrast, saturation = factors[..., None, None, None]
    for step in steps:
        if step == 0:
            views = _clamp(views + (brightness - 1))
        elif step == 1:
            views = _clamp(views * contrast)
        else:
            views = _Saturated.apply(views, saturation)
    return views


def _clamp(colours: Tensor) -> Tensor:
    """Clamp colours to [0, 1], in place."""
    # Backward, `clamp` takes four kernels and this one. It stops the gradient at its very bounds,
    # so they lie a little outside: a colour of 0 or 1 may come back.
    clamped: Tensor = F.hardtanh_(colours, -1e-6, 1 + 1e-6)
    return clamped


class _Saturated(torch.autograd.Function):
    """Multiplies HSV's saturation of colours (B, V or 1, 3, S, S) by factors (V, 1, 1, 1).

    HSV's value is the brightest channel. Its saturation is how far the darkest channel lies below
    that, as a share, so it is at most 1. To multiply it while hue and value stay is to move all
    channels away from the brightest in proportion, until the darkest is 0. The backward pass is
    written out because autograd's takes three times as long.
    """

    @staticmethod
    def forward(ctx: Any, colours: Tensor, factor: Tensor) -> Tensor:
        brightest, darkest = (reduce(colours, -3, True) for reduce in (torch.amax, torch.amin))
        spread = (brightest - darkest).clamp_min(1e-6)
        gain = torch.minimum(brightest / spread, factor)
        ctx.save_for_backward(colours, brightest, darkest, spread, gain, factor)
        return torch.lerp(brightest, colours, gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        colours, brightest, darkest, spread, gain, factor = ctx.saved_tensors
        # How the loss depends on the gain, where that is brightest / spread.
        slope = ((colours - brightest) * upstream).sum(-3, True) / spread.square()
        slope = torch.where(gain < factor, slope, 0)
        to_brightest = (1 - gain) * upstream.sum(-3, True) - slope * darkest
        gradient = upstream * gain
        for extreme, to_extreme in ((brightest, to_brightest), (darkest, slope * brightest)):
            attained = (colours == extreme).to(upstream.dtype)
            gradient.addcmul_(attained, to_extreme / attained.sum(-3, True))
        if colours.shape[1] < gradient.shape[1]:
            gradient = gradient.sum(1, True)
        return gradient, None


class OneView:
    """The image itself as its only view: guidance without augmentation."""

    count = 1

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return views (B, 1, 3, size, size) of images (B, 3, H, W), and the weight (1,)."""
        return resample(images, size)[:, None], images.new_ones(1)


one_view = OneView()
