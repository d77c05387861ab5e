"""Adversarial attacks: threat models, and one attack loop (PGD) for all of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import RunOptions
from .ascent import Callback
from .base import ClipagModel
from .defaults import NORMS
from .errors import ClipagError
from .guide import Guide
from .targets import text_target


@dataclass(frozen=True)
class ThreatModel(ABC):
    """A ball around each image, and how PGD searches it (Madry et al., ICLR 2018).

    Args:
        eps: radius of the ball, for images in [0, 1].
        steps: number of gradient steps.
        step_size: length of a step, in the units of `eps`.
    """

    eps: float
    steps: int
    step_size: float

    def random_start(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return images (B, 3, H, W) with a random perturbation inside the ball."""
        return self.start_at(images, self.noise(images.shape, generator))

    @abstractmethod
    def noise(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        """Return the noise (B, 3, H, W) of a random start, on the generator's device or the CPU."""

    @abstractmethod
    def start_at(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the start (B, 3, H, W) that `noise` of the same shape gives for the images."""

    @abstractmethod
    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Return images moved by one step in the direction of the gradient."""

    @abstractmethod
    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Return `perturbed` projected into the ball around `images` and into [0, 1]."""


class L2(ThreatModel):
    """A ball in the L2 norm over all values of an image."""

    def noise(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        """Return Gaussian noise."""
        return torch.randn(shape, generator=generator, device=_device_of(generator))

    def start_at(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return images moved by half the radius in the direction of the noise."""
        return self.project(images + unit_l2(noise.to(images)) * (0.5 * self.eps), images)

    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Return images moved by `step_size` in the direction of the gradient."""
        moved: Tensor = images + self.step_size * unit_l2(gradient)
        return moved

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Return `perturbed` at most `eps` away from `images`, in [0, 1]."""
        delta = perturbed - images
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        inside: Tensor = (images + delta * (self.eps / length).clamp_max(1)).clamp(0, 1)
        return inside


class Linf(ThreatModel):
    """A ball in the L∞ norm: no value of an image changes by more than `eps`."""

    def noise(self, shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
        """Return uniform noise in [0, 1)."""
        return torch.rand(shape, generator=generator, device=_device_of(generator))

    def start_at(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return images with each value moved by up to the radius, in proportion to the noise."""
        return self.project(images + (2 * noise.to(images) - 1) * self.eps, images)

    def step(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Return images with each value moved by `step_size` in the direction of its gradient."""
        moved: Tensor = images + self.step_size * gradient.sign()
        return moved

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Return `perturbed` with each value within `eps` of `images`, in [0, 1]."""
        return (images + (perturbed - images).clamp(-self.eps, self.eps)).clamp(0, 1)


def _device_of(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


THREAT_MODELS: dict[str, type[ThreatModel]] = dict(zip(NORMS, (Linf, L2), strict=True))


def unit_l2(x: Tensor) -> Tensor:
    """Scale each image of (B, 3, H, W) to L2 length 1."""
    length: Tensor = x.flatten(1).norm(dim=1).clamp_min(1e-12)
    return x / length.view(-1, 1, 1, 1)


def pgd(
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    threat_model: ThreatModel,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Return images (B, 3, H, W) in the threat model's ball that increase `loss`.

    Args:
        images: (B, 3, H, W) in [0, 1].
        loss: maps images to a scalar. It must be a sum over the batch, so that the images do not
            influence each other.
        threat_model: the ball, and the steps taken in it.
        generator: source of the random start, on the CPU; by default torch's own.
        start: where the search begins, (B, 3, H, W); by default a random point of the ball.
        callback: called as `callback(step, images, loss)` before each step. A true return value
            ends the search.
    """
    perturbed = threat_model.random_start(images, generator) if start is None else start.clone()
    for step in range(threat_model.steps):
        perturbed.requires_grad_(True)
        total = loss(perturbed)
        if callback is not None and callback(step, perturbed.detach(), total.detach()):
            break
        (gradient,) = torch.autograd.grad(total, perturbed)
        with torch.no_grad():
            perturbed = threat_model.project(threat_model.step(perturbed, gradient), images)
    return perturbed.detach()


def threat_model_of(
    norm: str, eps: float, steps: int, step_size: float | None = None
) -> ThreatModel:
    """Return the threat model of a norm by name.

    Args:
        norm: "linf" or "l2".
        eps: radius of the ball, for images in [0, 1].
        steps: number of gradient steps.
        step_size: length of a step, in the units of `eps`; by default 2.5 · eps / steps.

    Raises:
        ClipagError: there is no such norm, or a number is out of range.
    """
    if norm not in NORMS:
        raise ClipagError(f"`norm` is {norm!r}: choose from {', '.join(NORMS)}.")
    if not 0 < eps < math.inf:
        raise ClipagError(f"`eps` is {eps:g}: give a radius above 0, for images in [0, 1].")
    if steps < 1:
        raise ClipagError(f"`steps` is {steps}: an attack takes at least 1.")
    if step_size is None:
        step_size = 2.5 * eps / steps
    if not 0 < step_size < math.inf:
        raise ClipagError(f"`step_size` is {step_size:g}: give a length above 0.")
    return THREAT_MODELS[norm](eps, steps, step_size)


def attack(
    model: ClipagModel,
    images: Tensor,
    text: str,
    threat_model: ThreatModel,
    towards: str | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Return images (B, 3, H, W) that `model` no longer associates with `text`.

    The loss is equation 4 of the paper (Ganz & Elad, WACV 2024, appendix B): less similar to the
    text ("a cat"), more similar to its negation ("not a cat"). With `towards` it is the targeted
    attack of Figure 1, which only increases the similarity to that text. The targeted attack
    starts from the image itself, because in a large ball a random start would stay visible as
    noise.

    Args:
        model: the model to attack.
        images: (B, 3, H, W) in [0, 1].
        text: what the images show.
        threat_model: the ball, and the steps taken in it.
        towards: the target text; None is the negation of `text`.
        generator: source of the random start, on the CPU; by default torch's own.
        callback: as for `pgd`.

    Raises:
        ClipagError: a text is empty or has more than 77 tokens.
    """
    if towards is None:
        targets = [text_target(model, text), text_target(model, f"not {text}", weight=-1.0)]
    else:
        targets = [text_target(model, towards, weight=-1.0)]
    # The guide's loss falls as the similarity rises; pgd increases the loss.
    guide = Guide(model, [targets] * len(images), options=RunOptions("float32"))
    start = None if towards is None else images
    return pgd(images, lambda x: guide.loss(x).sum(), threat_model, generator, start, callback)
