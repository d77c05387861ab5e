"""One step of guided denoising: a predicted clean latent moves along a guide's gradient.

diffusers' pipelines (`diffusion.py`) and ComfyUI's samplers (`comfyui/guidance.py`) share it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from clipag_plugins.ascent import ImageLoss

MOST_NOISE = 15.0  # about Stable Diffusion's; flow models and some schedules start at noise alone


def move_length(strength: float, signal: float, noise: float) -> float:
    """Return how far a step moves its clean latents, as a share of their standard deviation.

    Above a noise of 1 the moves are longer in proportion, or they would be lost in it: a step that
    leaves much noise keeps little of the predicted clean latents.

    Args:
        strength: the length where noise does not exceed signal.
        signal, noise: factors of the clean latents and of the noise in the noisy latents.
    """
    return strength * min(max(1.0, noise / max(signal, 1e-6)), MOST_NOISE)


def moved(
    latents: Tensor, decode: Callable[[Tensor], Tensor], guide: ImageLoss, length: float
) -> tuple[Tensor, Tensor]:
    """Return latents that are moved so that the guide's loss of their pictures falls.

    Each latent moves along its own normalised gradient, as `canvas.NormalizedGradient` moves
    pixels. The gradient is normalised in the pixels, too, since that of a loss is so small that it
    vanishes in a decoder of half precision.

    Args:
        latents: (B, …).
        decode: turns latents into images (B, 3, H, W) in [0, 1], differentiably.
        guide: judges the images.
        length: of the move, as a share of the latent's standard deviation.

    Returns:
        The moved latents, and the guide's losses (B,) before the move.
    """
    with torch.enable_grad():
        leaf = latents.detach().clone().requires_grad_(True)
        images = decode(leaf)
        pixels = images.detach().float().requires_grad_(True)
        losses = guide.loss(pixels)
        (gradient,) = torch.autograd.grad(losses.sum(), pixels)
        (direction,) = torch.autograd.grad(images, leaf, _normalised(gradient).to(images))
    clean = leaf.detach().float()
    deviation = clean.flatten(1).std(dim=1).view(-1, *[1] * (clean.ndim - 1))
    return (clean - length * deviation * _normalised(direction)).to(latents), losses.detach()


def _normalised(gradient: Tensor) -> Tensor:
    """Return gradients (B, …) in float32, each with a root mean square of 1."""
    gradient = gradient.float()
    size = gradient.square().mean(dim=tuple(range(1, gradient.ndim)), keepdim=True).sqrt()
    return gradient / size.clamp_min(1e-30)
