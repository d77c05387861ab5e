"""Canvases: modules that render images from parameters. They know nothing about CLIP."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Optimizer(Protocol):
    """The methods of an optimiser that the loop calls; all of torch's have them."""

    def zero_grad(self) -> None:
        """Clear the gradients."""

    def step(self) -> Any:
        """Move the parameters along their gradients."""


class Canvas(nn.Module, ABC):
    """Renders a batch of images from its parameters.

    A subclass holds `nn.Parameter`s and defines `render`. Everything else is optional.
    """

    @abstractmethod
    def render(self) -> Tensor:
        """Return images (B, 3, H, W), RGB, in [0, 1], differentiable in the parameters."""

    def optimizer(self) -> Optimizer:
        """Return the optimiser that suits the parameters."""
        return torch.optim.Adam(self.parameters(), lr=0.05)

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the parameters back into their valid range; called after every step."""

    def state(self) -> dict[str, Tensor]:
        """Return the parameters whose best values `ascend` keeps, by name.

        Their first dimension is the image. By default there are none, and only the images
        themselves are kept.
        """
        return {}


class NormalizedGradient:
    """Steps of fixed length along each image's own gradient direction.

    The length of a gradient says how steep the similarity is, not how far to go. With robust
    towers, steps along its direction alone give the cleanest shapes (Santurkar et al., "Image
    Synthesis with a Single (Robust) Classifier", 2019).

    It is not a `torch.optim.Optimizer`, because the first of these in a process imports torch's
    whole compiler, which takes longer than drawing a picture.

    Args:
        params: tensors whose first dimension runs over images.
        step_size: length of a step as a root mean square over an image's numbers in each tensor.
        momentum: share of the previous direction that is kept.
    """

    def __init__(self, params: Sequence[nn.Parameter], step_size: float, momentum: float = 0.0):
        self.params = list(params)
        self.step_size = step_size
        self.momentum = momentum
        self.directions: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for parameter in self.params:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter one step."""
        for parameter in self.params:
            if parameter.grad is None:
                continue
            gradient = parameter.grad.flatten(1)
            length = gradient.norm(dim=1, keepdim=True) / gradient.shape[1] ** 0.5
            direction = (gradient / length.clamp_min(1e-12)).view_as(parameter)
            if self.momentum:
                if parameter in self.directions:
                    direction = direction + self.momentum * self.directions[parameter]
                self.directions[parameter] = direction
            parameter.sub_(self.step_size * direction)


class PixelCanvas(Canvas):
    """The pixels themselves.

    Args:
        start: (B, 3, H, W) in [0, 1].
        step_size: length of a step as a root mean square over pixels, for values in [0, 1].
        momentum: share of the previous step's direction that is kept.
    """

    def __init__(self, start: Tensor, step_size: float = 0.01, momentum: float = 0.0):
        super().__init__()
        self.pixels = nn.Parameter(start.detach().clone())
        self.step_size = step_size
        self.momentum = momentum

    def render(self) -> Tensor:
        """Return the pixels, (B, 3, H, W)."""
        return self.pixels

    def optimizer(self) -> Optimizer:
        """Return steps along the normalised gradient."""
        return NormalizedGradient([self.pixels], self.step_size, self.momentum)

    @torch.no_grad()
    def constrain(self) -> None:
        """Clamp to [0, 1]."""
        self.pixels.clamp_(0, 1)


# CLIPAG's notebook.
NOTEBOOK_RATE = 0.0175
NOTEBOOK_GRADIENT_NORM = 0.001
THRESHOLD_QUANTILE = 0.95


class ThresholdedCanvas(PixelCanvas):
    """Pixels under AdamW with a dynamic threshold: the settings of CLIPAG's notebook.

    Each image is scaled so that the 0.95 quantile of |2x − 1| is at most 1 (dynamic thresholding,
    Saharia et al. 2022), and its gradient is clipped to a norm of 0.001.
    """

    def optimizer(self) -> Optimizer:
        """Return the notebook's AdamW."""
        optimizer = torch.optim.AdamW([self.pixels], lr=NOTEBOOK_RATE)

        def clip(*_: object) -> None:
            # Clip each image's gradient separately: a picture must not depend on its neighbours.
            for gradient in self.pixels.grad if self.pixels.grad is not None else ():
                gradient.mul_(
                    (NOTEBOOK_GRADIENT_NORM / gradient.norm().clamp_min(1e-12)).clamp_max(1)
                )

        optimizer.register_step_pre_hook(clip)
        return optimizer

    @torch.no_grad()
    def constrain(self) -> None:
        """Apply the dynamic threshold."""
        signed = 2 * self.pixels - 1
        limit = torch.stack([_limit(image.abs().flatten()) for image in signed])
        limit = limit.view(-1, 1, 1, 1)
        self.pixels.copy_((signed.clamp(-limit, limit) / limit + 1) / 2)


def _limit(values: Tensor) -> Tensor:
    """Return the 0.95 quantile of values (N,), or 1 if that is larger."""
    # Sorting takes longer than the rest of a step. It is needed only if some 5 % of the values are
    # above 1; the margin of 1 % covers interpolation between neighbouring values.
    if (values > 1).float().mean() < 1 - THRESHOLD_QUANTILE - 0.01:
        return values.new_ones(())
    return torch.quantile(values, THRESHOLD_QUANTILE).clamp_min(1)
