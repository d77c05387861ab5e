"""The guide: the only place that knows about CLIP."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import ClipagError
from .model import ClipagModel, normalize
from .tokenizer import tokenize
from .views import one_view

MakeViews = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Target:
    """Where an image should move in CLIP's space.

    Attributes:
        embedding: of unit length, (D,).
        weight: how much it counts; below 0 it leads away.
        stop: the spherical distance, signed as the weight, at which it stops leading.
    """

    embedding: Tensor
    weight: float = 1.0
    stop: float = -math.inf


class Guide:
    """Turns images into a loss: how far their views are from the targets.

    Args:
        model: the CLIP that guides; frozen.
        targets: what each image should become: one list of targets an image.
        views: maps images (B, 3, H, W) and a side to views (B, V, 3, side, side) and
            weights (V,); by default the image itself, without augmentation.
        spherical: measure by half the squared angle to each target, as VQGAN+CLIP does (Crowson
            et al., ECCV 2022), rather than by the cosine.

    Raises:
        ClipagError: a target has a `stop` and the cosine is the measure.
    """

    def __init__(
        self,
        model: ClipagModel,
        targets: Sequence[Sequence[Target]],
        views: MakeViews = one_view,
        spherical: bool = False,
    ):
        self.model = model
        self.views = views
        self.spherical = spherical
        self._targets = targets
        if not spherical and any(t.stop != -math.inf for ts in targets for t in ts):
            raise ClipagError("A target's stop is a spherical distance: guide by spherical=True.")
        # One matrix a batch: constant during the ascent, so it is made only once.
        self._goals = torch.stack(
            [sum(t.weight * t.embedding for t in image_targets) for image_targets in targets]  # type: ignore[misc]
        ).detach()

    def loss(self, images: Tensor) -> Tensor:
        """Return the loss (B,) of images (B, 3, H, W) in [0, 1].

        It is Σ_v w_v · (−Σ_t w_t · cos(view v, target t)): the cosine loss of CLIPAG's
        sampler (supplement, section 1.3), averaged over views. If spherical, it is
        Σ_v w_v · Σ_t w_t · θ²/2, where θ is the angle between view v and target t.
        """
        views, weights = self.views(images, self.model.visual.native_size)
        z = self.model.encode_image(normalize(views.flatten(0, 1)))
        z = F.normalize(z.to(self._goals.dtype), dim=-1)
        z = z.unflatten(0, views.shape[:2])
        if self.spherical:
            return torch.stack(
                [weights @ _spherical(*pair) for pair in zip(z, self._targets, strict=True)]
            )
        return -torch.einsum("bvd,bd,v->b", z, self._goals, weights)


def _spherical(z: Tensor, targets: Sequence[Target]) -> Tensor:
    """Return the loss (V,) of one image's views (V, D), of unit length."""
    total = z.new_zeros(len(z))
    for target in targets:
        chord = (z - target.embedding.to(z)).norm(dim=1)
        # Just short of opposite, where the gradient of the arc sine has no end.
        distance = 2 * (chord / 2).clamp(max=1 - 1e-6).asin() ** 2
        signed = math.copysign(1, target.weight) * distance
        # Below the stop the loss still counts, and no gradient comes of it.
        led = signed.clamp(min=target.stop)
        total = total + abs(target.weight) * (signed.detach() + led - led.detach())
    return total


@torch.no_grad()
def text_target(
    model: ClipagModel, text: str, weight: float = 1.0, truncate: bool = False
) -> Target:
    """Encode a prompt as a target.

    Raises:
        ClipagError: the prompt is empty, or over 77 tokens and `truncate` is false.
    """
    if not text.strip():
        raise ClipagError(f"The prompt {text!r} is empty: say what to draw.")
    try:
        text.encode("utf-8")
        tokens = tokenize(text, truncate=truncate)
    except UnicodeEncodeError as error:
        raise ClipagError(f"The prompt {text!r} is not valid text: type it as UTF-8.") from error
    except RuntimeError as error:
        raise ClipagError(
            f"The prompt {text[:40]!r}… has more than {model.context_length} tokens: "
            "shorten it, or cut it with --truncate."
        ) from error
    z = model.encode_text(tokens.to(model.device))[0]
    return Target(F.normalize(z, dim=-1), weight)


@torch.no_grad()
def image_target(model: ClipagModel, image: Tensor, weight: float = 1.0) -> Target:
    """Encode an image (3, H, W) in [0, 1] as a target."""
    z = model.encode_image(normalize(image[None].to(model.device)))[0]
    return Target(F.normalize(z, dim=-1), weight)
