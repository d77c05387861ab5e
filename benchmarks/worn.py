"""Pictures worn as drawings are: soft, tinted, stained, smeared, posterised or compressed.

People recognise such pictures. A network that learns from clean pictures alone does not: it would
measure how clean a drawing is.
"""

import torch
from kornia.filters import median_blur
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

DETAIL = (24, 32, 48, 96)  # pixels a side that a blur leaves; equally many pictures get each
COARSE, FINE = 6, 24  # stains a side
BLUR = 48  # pixels a side: a judge still names pictures, and sees no grain
SMEARED, POSTERISED, COMPRESSED = 0.25, 0.25, 0.25  # shares of the pictures
SMEAR = 7  # pixels
LEVELS = (3, 8)  # of each colour channel
QUALITY = (10, 60)  # of JPEG


def blurred(images: Tensor, detail: int) -> Tensor:
    """Return pictures (B, 3, H, W) without what is finer than `detail` pixels a side."""
    small = F.interpolate(images, size=detail, mode="bilinear", antialias=True)
    return F.interpolate(small, size=images.shape[-2:], mode="bicubic").clamp(0, 1)


def worn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Wear pictures at random.

    Args:
        images: (B, 3, S, S) in [0, 1].
        generator: source of all randomness.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    images = images.clone()
    detail = torch.tensor(DETAIL)[torch.randint(len(DETAIL), (len(images),), generator=generator)]
    for side in DETAIL:
        if side < images.shape[-1] and (detail == side).any():
            images[detail == side] = blurred(images[detail == side], side)
    for wear, share in (
        (_smeared, SMEARED),
        (_coloured, 1.0),
        (_stained, 1.0),
        (_posterised, POSTERISED),
        (_compressed, COMPRESSED),
    ):
        chosen = torch.rand(len(images), generator=generator) < share
        if chosen.any():
            images[chosen] = wear(images[chosen], generator).clamp(0, 1)
    return images


def _uniform(
    images: Tensor, low: float, high: float, channels: int, generator: torch.Generator
) -> Tensor:
    return torch.rand(len(images), channels, 1, 1, generator=generator) * (high - low) + low


def _smeared(images: Tensor, generator: torch.Generator) -> Tensor:
    """Replace each pixel by the median around it: patches of one colour, as strokes leave."""
    smeared: Tensor = median_blur(images, SMEAR)
    return smeared


def _coloured(images: Tensor, generator: torch.Generator) -> Tensor:
    grey = images.mean(1, keepdim=True)
    saturated = grey + (images - grey) * _uniform(images, 0.3, 2.0, 1, generator)
    gain = _uniform(images, 0.7, 1.3, 3, generator)
    return saturated * gain + _uniform(images, -0.15, 0.15, 3, generator)


def _stained(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add stains of two sizes, and grain."""
    for detail, most in ((COARSE, 0.15), (FINE, 0.15), (images.shape[-1], 0.08)):
        noise = torch.randn(len(images), 3, detail, detail, generator=generator)
        stains = F.interpolate(noise, size=images.shape[-1], mode="bicubic")
        images = images + stains * _uniform(images, 0, most, 1, generator)
    return images


def _posterised(images: Tensor, generator: torch.Generator) -> Tensor:
    levels = _uniform(images, *LEVELS, 1, generator).round()
    return (images * levels).round() / levels


def _compressed(images: Tensor, generator: torch.Generator) -> Tensor:
    quality = _uniform(images, *QUALITY, 1, generator).flatten().int().tolist()
    pixels = (images * 255).round().to(torch.uint8)
    return (
        torch.stack(
            [
                decode_jpeg(encode_jpeg(each, quality=number), ImageReadMode.RGB)
                for each, number in zip(pixels, quality, strict=True)
            ]
        ).float()
        / 255
    )
