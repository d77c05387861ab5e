"""Adversarial attacks: a threat model as an object, and one loop that knows no norm."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import RunOptions
from .base import ClipagModel
from .errors import ClipagError
from .guide import Guide
from .targets import text_target


@dataclass(frozen=True)
class ThreatModel(ABC):
    """A ball around each image, and how to search it (PGD, Madry et al. 2018).

    Args:
        eps: radius, for images in [0, 1].
        steps: gradient steps.
        step_size: length of one step, in the units of `eps`.
    """

    eps: float
    steps: int
    step_size: float

    def random_start(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return images (B, 3, H, W) moved by a random perturbation inside the ball."""
        return self.start_at(images, self.noise(images.shape, generator))

    @abstractmethod
    def noise(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        """Return what a random start is made of, (B, 3, H, W), on the CPU."""

    @abstractmethod
    def start_at(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the random start (B, 3, H, W) that `noise` of that shape makes of images."""

    @abstractmethod
    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Return images moved one step along the gradient's direction."""

    @abstractmethod
    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Return `perturbed` brought back into the ball around `images` and into [0, 1]."""


class L2(ThreatModel):
    """The ball of the L2 norm over all values of an image."""

    def noise(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        """Return normal noise."""
        return torch.randn(shape, generator=generator)

    def start_at(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return images moved by half the radius, in the direction of the noise."""
        return self.project(images + unit_l2(noise.to(images)) * (0.5 * self.eps), images)

    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Return images moved by `step_size` along the gradient."""
        moved: Tensor = images + self.step_size * unit_l2(gradient)
        return moved

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Return `perturbed`, no farther than `eps` from `images`, in [0, 1]."""
        delta = perturbed - images
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        inside: Tensor = (images + delta * (self.eps / length).clamp_max(1)).clamp(0, 1)
        return inside


class Linf(ThreatModel):
    """The ball of the L∞ norm: no value of an image changes by more than `eps`."""

    def noise(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        """Return uniform noise in [0, 1)."""
        return torch.rand(shape, generator=generator)

    def start_at(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return images with every value moved by up to the radius, as the noise says."""
        return self.project(images + (2 * noise.to(images) - 1) * self.eps, images)

    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Return images with every value moved by `step_size` along its gradient's sign."""
        moved: Tensor = images + self.step_size * gradient.sign()
        return moved

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Return `perturbed`, every value within `eps` of `images`, in [0, 1]."""
        return (images + (perturbed - images).clamp(-self.eps, self.eps)).clamp(0, 1)


NORMS = {"linf": Linf, "l2": L2}


def unit_l2(x: Tensor) -> Tensor:
    """Scale every image of (B, 3, H, W) to L2 length 1."""
    length: Tensor = x.flatten(1).norm(dim=1).clamp_min(1e-12)
    return x / length.view(-1, 1, 1, 1)


def pgd(
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    threat_model: ThreatModel,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Return images (B, 3, H, W) in the threat model's ball that raise `loss`.

    `loss` maps images to a scalar, summed over the batch so that no image weighs on another.
    The search begins at `start` (B, 3, H, W), by default at a random point of the ball.
    """
    perturbed = threat_model.random_start(images, generator) if start is None else start.clone()
    for _ in range(threat_model.steps):
        perturbed.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(perturbed), perturbed)
        with torch.no_grad():
            perturbed = threat_model.project(threat_model.step(perturbed, gradient), images)
    return perturbed.detach()


def threat_model_of(
    norm: str, eps: float, steps: int, step_size: float | None = None
) -> ThreatModel:
    """Return the threat model of a norm's name; a step is by default 2.5 · eps / steps.

    Raises:
        ClipagError: there is no such norm, or a number is out of its range.
    """
    if norm not in NORMS:
        raise ClipagError(f"norm is {norm!r}: choose from {', '.join(NORMS)}.")
    if not 0 < eps < math.inf:
        raise ClipagError(f"eps is {eps:g}: give a radius above 0, for images in [0, 1].")
    if steps < 1:
        raise ClipagError(f"steps is {steps}: an attack takes at least 1.")
    if step_size is None:
        step_size = 2.5 * eps / steps
    if not 0 < step_size < math.inf:
        raise ClipagError(f"step_size is {step_size:g}: give a length above 0.")
    return NORMS[norm](eps, steps, step_size)


def attack(
    model: ClipagModel,
    images: Tensor,
    text: str,
    threat_model: ThreatModel,
    towards: str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return images (B, 3, H, W) that `model` takes for something else than `text`.

    The loss is the paper's (Ganz & Elad, WACV 2024, appendix B, eq. 4): away from the text,
    "a cat", and towards its negation, "not a cat". With `towards` it is the targeted attack of
    Figure 1: towards that text alone, in a ball as large as you like, and from the image itself,
    since noise would be seen in so large a change.

    Raises:
        ClipagError: a text is empty or has more than 77 tokens.
    """
    if towards is None:
        targets = [text_target(model, text), text_target(model, f"not {text}", weight=-1.0)]
    else:
        targets = [text_target(model, towards, weight=-1.0)]
    # A guide's loss falls with the similarity; the attack raises it.
    guide = Guide(model, [targets] * len(images), options=RunOptions("float32"))
    start = None if towards is None else images
    return pgd(images, lambda x: guide.loss(x).sum(), threat_model, generator, start)
