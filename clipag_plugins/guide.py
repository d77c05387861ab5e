"""The guide: the only place that knows about CLIP."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import precision as precisions
from .errors import ClipagError
from .model import ClipagModel, embed_images, normalize
from .tokenizer import tokenize
from .views import one_view


class MakeViews(Protocol):
    """What turns images into views: `Views`, `one_view`, or your own."""

    @property
    def count(self) -> int:
        """Number of views of one image, V."""

    def __call__(self, images: Tensor, size: int, /) -> tuple[Tensor, Tensor]:
        """Return views (B, V, 3, size, size) of images (B, 3, H, W), and weights (V,)."""


@dataclass(frozen=True)
class Target:
    """Where an image should move in CLIP's space.

    Attributes:
        embedding: of unit length, (D,).
        weight: how much it counts; below 0 it leads away.
        stop: the distance, signed as the weight, at which it stops leading: the spherical
            distance, or with a source 1 − cosine (CLIPStyler's threshold).
        source: where the image comes from, of unit length, (D,). The embedding is then not a
            place but a direction: that from the source to the image should be parallel to it
            (StyleGAN-NADA, Gal et al. 2022; CLIPStyler, Kwon & Ye 2022).
    """

    embedding: Tensor
    weight: float = 1.0
    stop: float = -math.inf
    source: Tensor | None = None


# At the source itself a move has no direction, and close to it a gradient without bound: moves
# that are shorter than this count in proportion. Embeddings have length 1.
SHORTEST = 0.1
TEXTS_AT_ONCE = 256


class Guide:
    """Turns images into a loss: how far their views are from the targets.

    Args:
        model: the CLIP that guides. Its weights never take a gradient here.
        targets: what each image should become: one list of targets an image.
        views: maps images to views; by default the image itself, without augmentation.
        seeds: one an image: where the random numbers of its views come from, so that an
            image does not depend on its batch. None is torch's global generator, and the
            same numbers for every image.
        spherical: measure by half the squared angle to each target, as VQGAN+CLIP does (Crowson
            et al., ECCV 2022), rather than by the cosine.
        precision: what the tower computes in: "auto" (the fastest on this device, by a
            measurement), "float32", "bfloat16" or "float16". The loss is float32.
        max_views: views that the tower sees at once: it bounds the memory that takes. (The views
            of one image are made at once, however many.)
        compile: pass the tower through `torch.compile`, on CUDA with CUDA graphs (not timed
            yet). On CPUs it costs a minute or more before the first step and was found to gain
            nothing: what guidance does is matrix products already.

    Raises:
        ClipagError: `precision`, `max_views` or `compile` is not possible, there is no target,
            one has a `stop` where the cosine to a place is the measure, or a `source` where
            the angle is.
    """

    def __init__(
        self,
        model: ClipagModel,
        targets: Sequence[Sequence[Target]],
        views: MakeViews = one_view,
        *,
        seeds: Sequence[int] | None = None,
        spherical: bool = False,
        precision: str = "auto",
        max_views: int = 64,
        compile: bool = False,
    ):
        if max_views < 1:
            raise ClipagError(f"max_views is {max_views}: the tower must see at least 1 at once.")
        self.model = model
        self.views = views
        self.max_views = max_views
        self.dtype = precisions.choose(precision, model.visual)
        tower = precisions.in_precision(model.visual, self.dtype)
        if compile:
            cuda_graphs = model.device.type == "cuda"
            if not cuda_graphs and not any(map(shutil.which, ("g++", "clang++", "cl"))):
                raise ClipagError("compile needs a C++ compiler: install g++, or leave it out.")
            tower = torch.compile(tower, mode="reduce-overhead" if cuda_graphs else None)  # type: ignore[assignment]
        self._tower = tower
        self.spherical = spherical
        flat = [target for image_targets in targets for target in image_targets]
        if not flat:
            raise ClipagError("There is no target: give each image at least one.")
        sources = any(target.source is not None for target in flat)
        if not spherical and not sources and any(target.stop != -math.inf for target in flat):
            raise ClipagError("A target's stop is a spherical distance: guide by spherical=True.")
        if spherical and sources:
            raise ClipagError("Directions are compared by their cosine: leave spherical out.")
        self.is_distance = spherical or sources
        # Constant during the ascent, so made only once. Images with fewer targets than others
        # are filled up with such as weigh nothing.
        device, most = flat[0].embedding.device, max(map(len, targets))
        nowhere = torch.zeros_like(flat[0].embedding)
        blank = Target(nowhere, 0.0)
        table = [[*row, *[blank] * (most - len(row))] for row in targets]
        self._embeddings = torch.stack(
            [torch.stack([t.embedding for t in row]) for row in table]
        ).detach()  # (B, T, D)
        self._weights = torch.tensor([[t.weight for t in row] for row in table], device=device)
        self._stops = torch.tensor([[t.stop for t in row] for row in table], device=device)
        self._sources = None
        if sources:
            come_from = [[nowhere if t.source is None else t.source for t in r] for r in table]
            self._sources = torch.stack([torch.stack(row) for row in come_from]).detach()
        # None stands for torch's global generator.
        self._seeds: list[int | None] = [None] * len(targets) if seeds is None else [*seeds]
        self._streams: dict[int | None, Tensor] = {
            seed: torch.Generator().manual_seed(seed).get_state() for seed in seeds or ()
        }

    def loss(self, images: Tensor) -> Tensor:
        """Return the loss (B,) of images (B, 3, H, W) in [0, 1], differentiable in them alone.

        It is Σ_v w_v · (−Σ_t w_t · cos(view v, target t)): the cosine loss of CLIPAG's
        sampler (supplement, section 1.3), averaged over views. If spherical, it is
        Σ_v w_v · Σ_t w_t · θ²/2, where θ is the angle between view v and target t. If targets
        have sources, it is Σ_v w_v · Σ_t w_t · (1 − cos(view v − source t, target t)).
        """
        wanted = torch.is_grad_enabled() and images.requires_grad
        losses: Tensor = _Loss.apply(images, self, wanted)
        return losses

    def _look(self, images: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Return losses (B,) and, if `wanted`, their gradients (B, 3, H, W)."""
        shared = torch.get_rng_state()
        try:
            found = self._look_from(shared, images, wanted)
            shared = self._streams.get(None, shared)
        finally:
            torch.set_rng_state(shared)
        return found

    def _look_from(
        self, shared: Tensor, images: Tensor, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Look, where torch's global generator is in the state `shared`, and leave it anywhere."""
        losses = images.new_empty(len(images), dtype=torch.float32)
        gradient = torch.empty_like(images) if wanted else None
        begin = {**self._streams, None: shared}
        for rows in torch.arange(len(images)).split(max(1, self.max_views // self.views.count)):
            part = images[rows].requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                views, weights = self._views_of(part, rows.tolist(), begin)
            found, slopes = [], []
            chunks = (
                views.detach().flatten(0, 1),
                rows.repeat_interleave(self.views.count),
                weights.float().repeat(len(rows)),
            )
            for chunk, owners, weight in zip(
                *(x.split(self.max_views) for x in chunks), strict=True
            ):
                chunk.requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    z = F.normalize(self._tower(normalize(chunk).to(self.dtype)).float(), dim=-1)
                    loss = weight * self._distance(z, owners)
                    total = loss.sum()
                found.append(loss.detach())
                if wanted:
                    slopes += torch.autograd.grad(total, chunk)
            losses[rows] = torch.cat(found).view(len(rows), -1).sum(dim=1)
            if gradient is not None:
                slope = torch.cat(slopes).view_as(views)
                # Through one number: for a slope to start from, torch would first import sympy.
                with torch.enable_grad():
                    along = (views * slope).sum()
                (gradient[rows],) = torch.autograd.grad(along, part)
        return losses, gradient

    def _distance(self, z: Tensor, owners: Tensor) -> Tensor:
        """Return how far (N,) unit embeddings (N, D) are from the targets of images `owners`."""
        embeddings, weights = self._embeddings[owners].float(), self._weights[owners]
        if not self.is_distance:
            return -((embeddings @ z[:, :, None]).squeeze(2) * weights).sum(dim=1)
        if self._sources is not None:
            move = z[:, None] - self._sources[owners].float()
            length = move.norm(dim=2).clamp_min(SHORTEST)
            away = 1 - (move * embeddings).sum(dim=2) / length
        else:
            chord = (z[:, None] - embeddings).norm(dim=2)
            # Just short of opposite, where the gradient of the arc sine has no end.
            away = 2 * (chord / 2).clamp(max=1 - 1e-6).asin() ** 2
        signed = away * weights.sign()
        # Below the stop the distance still counts, and no gradient comes of it.
        led = signed.maximum(self._stops[owners])
        distance: Tensor = (weights.abs() * (signed.detach() + led - led.detach())).sum(dim=1)
        return distance

    def _views_of(
        self, images: Tensor, rows: list[int], begin: dict[int | None, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the views of some rows of the batch, each drawn from its own seed's stream."""
        views, first = [], 0
        for seed, alike in groupby(self._seeds[row] for row in rows):
            count = len(list(alike))
            torch.set_rng_state(begin[seed])
            drawn, weights = self.views(
                images[first : first + count], self.model.visual.native_size
            )
            self._streams[seed] = torch.get_rng_state()
            views.append(drawn)
            first += count
        return torch.cat(views), weights


class _Loss(torch.autograd.Function):
    """A guide's loss. Its gradient is made in the same pass, chunk by chunk, and kept."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, guide: Guide, wanted: bool) -> Tensor:
        losses, gradient = guide._look(images.detach(), wanted)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream.view(-1, 1, 1, 1) * gradient, None, None


@torch.no_grad()
def text_target(
    model: ClipagModel, text: str, weight: float = 1.0, truncate: bool = False
) -> Target:
    """Encode a prompt as a target.

    Raises:
        ClipagError: the prompt is empty, or over 77 tokens and `truncate` is false.
    """
    return Target(_encode_text(model, text, ["{}"], truncate, model.encode_text), weight)


@torch.no_grad()
def style_target(
    model: ClipagModel,
    text: str,
    image: Tensor,
    weight: float = 1.0,
    *,
    threshold: float = 0.0,
    source_text: str = "a Photo",
    templates: Sequence[str] | None = None,
    truncate: bool = False,
) -> Target:
    """Encode CLIPStyler's directional target: from `source_text` to `text`, away from `image`.

    Args:
        model: the CLIP that guides.
        text: the style, as "a watercolor painting with purple brush".
        image: what is styled, (3, H, W) in [0, 1].
        weight: how much it counts.
        threshold: views nearer than this, in 1 − cosine, stop leading (the paper's 0.7).
        source_text: what the image is, in words.
        templates: sentences with {} for a text, over which both texts are averaged; by default
            the 80 that OpenAI's CLIP was tested with on ImageNet.
        truncate: cut texts of more than 77 tokens instead of refusing them.

    Raises:
        ClipagError: a text is empty, too long, or both mean the same.
    """
    if templates is None:
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    # A direction leads from text to text: what either recalls of pictures blurs it. (With the
    # memory CLIPAG's style network fell behind vanilla's: benchmarks/clipstyler.py.)
    to, source = (
        _encode_text(model, t, templates, truncate, model.encode_words) for t in (text, source_text)
    )
    if (to - source).norm() < 1e-3:
        raise ClipagError(f"{text!r} is to the model what {source_text!r} is: name a style.")
    place = image_target(model, image).embedding
    return Target(F.normalize(to - source, dim=0), weight, threshold, place)


@torch.no_grad()
def text_embeddings(model: ClipagModel, texts: Sequence[str], truncate: bool = False) -> Tensor:
    """Return unit-length embeddings (N, D) of texts, encoded many at a time.

    Raises:
        ClipagError: a text is empty, or over 77 tokens and `truncate` is false.
    """
    tokens = torch.cat([_tokens(model, text, ["{}"], truncate) for text in texts])
    parts = [model.encode_text(chunk.to(model.device)) for chunk in tokens.split(TEXTS_AT_ONCE)]
    return F.normalize(torch.cat(parts), dim=-1)


def _encode_text(
    model: ClipagModel,
    text: str,
    templates: Sequence[str],
    truncate: bool,
    encode: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the unit embedding (D,) of a text: the average over what the templates make of it."""
    tokens = _tokens(model, text, templates, truncate).to(model.device)
    z = F.normalize(encode(tokens), dim=-1)
    return F.normalize(z.mean(dim=0), dim=-1)


def _tokens(model: ClipagModel, text: str, templates: Sequence[str], truncate: bool) -> Tensor:
    """Return the tokens (T, 77) of what the templates make of a text."""
    if not text.strip():
        raise ClipagError(f"The prompt {text!r} is empty: say what to draw.")
    try:
        text.encode("utf-8")
        texts = [template.replace("{}", text) for template in templates]
        return tokenize(texts, truncate=truncate)
    except UnicodeEncodeError as error:
        raise ClipagError(f"The prompt {text!r} is not valid text: type it as UTF-8.") from error
    except RuntimeError as error:
        raise ClipagError(
            f"The prompt {text[:40]!r}… has more than {model.context_length} tokens: "
            "shorten it, or have it cut where that is offered (--truncate)."
        ) from error


@torch.no_grad()
def image_target(model: ClipagModel, image: Tensor, weight: float = 1.0) -> Target:
    """Encode an image (3, H, W) in [0, 1] as a target."""
    return Target(embed_images(model, image[None].to(model.device))[0], weight)
