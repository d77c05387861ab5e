"""Random pose, background and light for pictures with an alpha channel."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ZOOM = (0.85, 1.3)  # of the view: above 1 the picture shrinks
TURN = 0.25  # radians, either way
SHIFT = 0.15  # half sides, either way
CONTRAST = (0.7, 1.1)
BRIGHTNESS = 0.1  # either way
PATCHES = 3  # a soft background is enlarged from so many colours a side


def posed(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Draw pictures in random pose and light on random backgrounds.

    A third of the backgrounds are white, a third of one colour, a third a soft mixture.

    Args:
        rgba: (B, 4, S, S) in [0, 1], premultiplied: otherwise the colours hidden under alpha 0
            would bleed in when the picture is resampled.
        generator: source of all randomness.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    count, side = len(rgba), rgba.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    zoom, angle = uniform(*ZOOM), uniform(-TURN, TURN)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    shift = uniform(-SHIFT, SHIFT, 2)
    rgba = placed(rgba, angle, zoom, flip, shift.unbind(dim=1), side)

    kind = uniform(0, 3, 1, 1, 1)
    colour = uniform(0, 1, 3, 1, 1).expand(-1, -1, side, side)
    mixture = F.interpolate(uniform(0, 1, 3, PATCHES, PATCHES), size=side, mode="bicubic")
    background = torch.where(kind < 1, 1.0, torch.where(kind < 2, colour, mixture))
    images = rgba[:, :3] + (1 - rgba[:, 3:]) * background
    contrast, brightness = uniform(*CONTRAST, 1, 1, 1), uniform(-BRIGHTNESS, BRIGHTNESS, 1, 1, 1)
    return ((images - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def placed(
    images: Tensor,
    angle: Tensor,
    zoom: Tensor,
    flip: Tensor,
    shift: Sequence[Tensor],
    side: int,
    padding: str = "zeros",
) -> Tensor:
    """Turn, scale, mirror and shift each image (B, C, S, S), and draw it at another side.

    Args:
        images: (B, C, S, S).
        angle, zoom, flip: (B,) radians, scale of the view, and 1 or -1 for a mirror image.
        shift: two of (B,), right and down, in half sides.
        side: of the result.
        padding: what lies outside, as for `grid_sample`.

    Returns:
        (B, C, side, side).
    """
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    pose = torch.stack([cos * flip, -sin, shift[0], sin * flip, cos, shift[1]], dim=1)
    size = [len(images), images.shape[1], side, side]
    grid = F.affine_grid(pose.view(-1, 2, 3), size, align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
