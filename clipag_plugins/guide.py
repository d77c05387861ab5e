"""The guide: turns images into a loss. It is the only part of the loop that knows CLIP.

One look at a batch of images is three lines of arithmetic:

    views = make_views(images)                      (B, V, 3, S, S)
    z = normalize(image_tower(views))               (B, V, D), of unit length
    loss = Σ_v weight_v · target_loss(z)            (B,)

The rest of this file bounds the memory that they need. A picture has up to thousands of views,
and the activations of all of them do not fit. So the image tower sees at most `max_views` views at
once, and the gradient with respect to these views is computed before the next ones are looked at.
The gradient is therefore part of the forward pass, and autograd's backward pass only returns it.
"""

import shutil
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import precision
from .arguments import RunOptions
from .base import ClipagModel, normalize
from .errors import ClipagError
from .graphs import Replayed
from .streams import OpenStream, RandomStreams
from .targets import (
    Target,
    cosine_loss,
    directional_loss,
    image_target,
    spherical_loss,
    style_target,
    table_of,
    text_embeddings,
    text_target,
)
from .views import MakeViews, one_view

# float16 ends at 6e-8: without a scale, the gradient of one of 64 views would lose digits, and that
# of one of 4,096 would vanish.
FLOAT16_SCALE = 1024.0

__all__ = [
    "Guide",
    "Guides",
    "MakeViews",
    "Target",
    "image_target",
    "style_target",
    "text_embeddings",
    "text_target",
]


class Guide:
    """Turns images into a loss: how far their views are from the targets.

    Args:
        model: the CLIP that guides. Its weights never take a gradient here.
        targets: one list of targets for each image.
        views: maps images to views; by default the image itself, without augmentation.
        seeds: one for each image: its views draw their random numbers from it, so that an image
            does not depend on its batch. If None, views use torch's global generator, and all
            images share the same random numbers.
        spherical: measure half the squared angle to each target, as VQGAN+CLIP does (Crowson
            et al., ECCV 2022), instead of the cosine.
        options: precision, memory and compilation.

    Raises:
        ClipagError: the precision is unknown, there is no compiler, or there is no target; a target
            has a `stop`, but the guide is not spherical and no target has a source; the guide is
            spherical, and a target has a source.
    """

    def __init__(
        self,
        model: ClipagModel,
        targets: Sequence[Sequence[Target]],
        views: MakeViews = one_view,
        *,
        seeds: Sequence[int] | None = None,
        spherical: bool = False,
        options: RunOptions = RunOptions(),
    ):
        self.model = model
        self.views = views
        self.max_views = options.max_views
        self.dtype = precision.choose(options.precision, model.visual)
        self._scale = FLOAT16_SCALE if self.dtype == torch.float16 else 1.0
        self._tower = precision.in_precision(model.visual, self.dtype)
        self._encode: Callable[[Tensor], Tensor] = Replayed(self._tower)
        if options.compile:
            self._encode = _compiled(self._tower, model.device)
        self._targets = table_of(targets)
        has_sources = self._targets.sources is not None
        if spherical and has_sources:
            raise ClipagError("Directions are compared by their cosine: leave `spherical` out.")
        if not (spherical or has_sources) and (self._targets.stops > -torch.inf).any():
            raise ClipagError("A target's stop is a spherical distance: guide by spherical=True.")
        self._target_loss = (
            directional_loss if has_sources else spherical_loss if spherical else cosine_loss
        )
        self._seeds = [None] * len(targets) if seeds is None else [*seeds]
        self._streams = RandomStreams(seeds or [])

    def loss(self, images: Tensor, views: MakeViews | None = None) -> Tensor:
        """Return the loss (B,) of images (B, 3, H, W) in [0, 1].

        It is Σ_v w_v · L(view v), where L is `targets.cosine_loss`, `spherical_loss` if the guide
        is spherical, or `directional_loss` if targets have sources. It is differentiable in the
        images only, and only once.

        Args:
            images: as many as there are lists of targets.
            views: instead of the guide's own.

        Raises:
            ClipagError: there are more or fewer images, or they have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ClipagError(f"Images are (B, 3, H, W), not {tuple(images.shape)}.")
        if len(images) != len(self._seeds):
            raise ClipagError(
                f"There are {len(images)} images for {len(self._seeds)} lists of targets: give one "
                "list for each image."
            )
        needs_gradient = torch.is_grad_enabled() and images.requires_grad
        losses: Tensor = _LossWithGradient.apply(
            images, self, self.views if views is None else views, needs_gradient
        )
        return losses

    def readout(self, losses: Tensor) -> tuple[str, float]:
        """Return the name and the mean of what the losses (B,) measure, for progress bars."""
        mean = losses.detach().mean().item()
        return ("similarity", -mean) if self._target_loss is cosine_loss else ("distance", mean)

    def _losses_and_gradient(
        self, images: Tensor, make_views: MakeViews, needs_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return losses (B,) and, if needed, their gradients (B, 3, H, W)."""
        losses = images.new_empty(len(images), dtype=torch.float32)
        gradient = torch.empty_like(images) if needs_gradient else None
        images_at_once = max(1, self.max_views // make_views.count)
        open_stream = self._streams.step()
        for numbers in torch.arange(len(images)).split(images_at_once):
            part = images[numbers].requires_grad_(needs_gradient)
            with torch.set_grad_enabled(needs_gradient):
                views, weights = self._make_views(part, numbers, make_views, open_stream)
            view_losses, view_gradient = self._encode_and_compare(
                views.detach().flatten(0, 1),
                numbers.repeat_interleave(make_views.count),
                weights.float().repeat(len(numbers)),
                needs_gradient,
            )
            losses[numbers] = view_losses.view(len(numbers), -1).sum(dim=1)
            if gradient is not None and view_gradient is not None:
                # Scalar product instead of `grad_outputs`: that path imports sympy (slow).
                with torch.enable_grad():
                    product = (views * view_gradient.view_as(views)).sum()
                (gradient[numbers],) = torch.autograd.grad(product, part)
        return losses, gradient

    def _make_views(
        self, images: Tensor, numbers: Tensor, make_views: MakeViews, open_stream: OpenStream
    ) -> tuple[Tensor, Tensor]:
        """Return views (N, V, 3, S, S) of the images with these numbers, each by its own seed."""
        parts, first = [], 0
        for seed, run in groupby(self._seeds[number] for number in numbers.tolist()):
            count = len(list(run))
            with open_stream(seed):
                part, weights = make_views(
                    images[first : first + count], self.model.visual.native_size
                )
            parts.append(part)
            first += count
        return torch.cat(parts), weights

    def _encode_and_compare(
        self, views: Tensor, image_numbers: Tensor, weights: Tensor, needs_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weighted losses (N,) of views (N, 3, S, S) and, if needed, their gradients.

        `image_numbers` (N,) says which image each view is of, `weights` (N,) how much it counts.
        """
        losses, gradients = [], []
        chunks = (each.split(self.max_views) for each in (views, image_numbers, weights))
        for part, numbers, weight in zip(*chunks, strict=True):
            part.requires_grad_(needs_gradient)
            with torch.set_grad_enabled(needs_gradient):
                z = F.normalize(self._encode(normalize(part).to(self.dtype)).float(), dim=-1)
                loss = weight * self._target_loss(z, self._targets.of_images(numbers))
                total = loss.sum() * self._scale
            losses.append(loss.detach())
            if needs_gradient:
                (gradient,) = torch.autograd.grad(total, part)
                gradients.append(gradient if self._scale == 1 else gradient / self._scale)
        return torch.cat(losses), torch.cat(gradients) if needs_gradient else None


class Guides:
    """Several guides of the same images as one: the mean of their losses.

    Each has its own model, input side, precision and views, and its own targets, since an embedding
    means something to its own model only.

    Args:
        guides: at least one; all of them with a list of targets for each image.

    Raises:
        ClipagError: there is no guide.
    """

    def __init__(self, guides: Sequence[Guide]):
        if not guides:
            raise ClipagError("There is no guide: give at least one.")
        self.guides = list(guides)

    def loss(self, images: Tensor, views: MakeViews | None = None) -> Tensor:
        """Return the mean of the guides' losses (B,) of images (B, 3, H, W): see `Guide.loss`."""
        return torch.stack([guide.loss(images, views) for guide in self.guides]).mean(dim=0)

    def readout(self, losses: Tensor) -> tuple[str, float]:
        """Return the name and the mean of what the losses (B,) measure, for progress bars."""
        return self.guides[0].readout(losses)


class _LossWithGradient(torch.autograd.Function):
    """A guide's loss. Its gradient is computed in the forward pass and returned in the backward."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, guide: Guide, views: MakeViews, needs_gradient: bool
    ) -> Tensor:
        losses, gradient = guide._losses_and_gradient(images.detach(), views, needs_gradient)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream.view(-1, 1, 1, 1) * gradient, None, None, None


def _compiled(tower: nn.Module, device: torch.device) -> nn.Module:
    """Pass a tower through `torch.compile`, on CUDA with CUDA graphs.

    Raises:
        ClipagError: a CPU's code cannot be compiled, since there is no C++ compiler.
    """
    cuda_graphs = device.type == "cuda"
    if not cuda_graphs and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise ClipagError("`compile` needs a C++ compiler: install g++, or leave it out.")
    compiled: nn.Module = torch.compile(tower, mode="reduce-overhead" if cuda_graphs else None)  # type: ignore[assignment]
    return compiled
