"""Targets: where an image should move in CLIP's space, and how far it is from there."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import ClipagModel, embed_images
from .errors import ClipagError
from .tokenizer import tokenize
from .vit import CLIP

TEXTS_AT_ONCE = 256
# A direction is undefined at the source itself, and its gradient grows without bound close to it.
# Changes that are shorter than this count in proportion. Embeddings have length 1.
SHORTEST_CHANGE = 0.1


@dataclass(frozen=True)
class Target:
    """Where an image should move in CLIP's space.

    Attributes:
        embedding: (D,), of unit length.
        weight: how much the target counts; a negative weight pushes the image away.
        stop: the loss at which the target stops pulling, with the sign of the weight. The loss is
            the spherical distance or, with a source, 1 − cosine (CLIPStyler's threshold).
        source: the embedding of the image before it is changed, (D,), of unit length. `embedding`
            is then a direction: the change from `source` to the image should be parallel to it
            (StyleGAN-NADA, Gal et al. 2022; CLIPStyler, Kwon & Ye 2022).
    """

    embedding: Tensor
    weight: float = 1.0
    stop: float = -math.inf
    source: Tensor | None = None


# What one picture should be like: a text, or targets that the model has encoded.
Prompt = str | Sequence[Target]


@dataclass(frozen=True)
class TargetTable:
    """The targets of B images as tensors. Images with fewer than T targets have weights of 0.

    Attributes:
        embeddings: (B, T, D).
        weights: (B, T).
        stops: (B, T).
        sources: (B, T, D), or None if no target has a source.
    """

    embeddings: Tensor
    weights: Tensor
    stops: Tensor
    sources: Tensor | None

    def of_images(self, numbers: Tensor) -> "TargetTable":
        """Return the rows of the images with these numbers (N,), in float32."""
        sources = None if self.sources is None else self.sources[numbers].float()
        return TargetTable(
            self.embeddings[numbers].float(), self.weights[numbers], self.stops[numbers], sources
        )


def table_of(targets: Sequence[Sequence[Target]]) -> TargetTable:
    """Put the targets of each image into one table.

    Raises:
        ClipagError: there is no target.
    """
    first = next((target for row in targets for target in row), None)
    if first is None:
        raise ClipagError("There is no target: give each image at least one.")
    zero, device = torch.zeros_like(first.embedding), first.embedding.device
    longest = max(map(len, targets))
    rows = [[*row, *[Target(zero, 0.0)] * (longest - len(row))] for row in targets]

    def stacked(get: Callable[[Target], Tensor]) -> Tensor:
        return torch.stack([torch.stack([get(target) for target in row]) for row in rows]).detach()

    has_sources = any(target.source is not None for row in rows for target in row)
    return TargetTable(
        stacked(lambda target: target.embedding),
        torch.tensor([[target.weight for target in row] for row in rows], device=device),
        torch.tensor([[target.stop for target in row] for row in rows], device=device),
        stacked(lambda target: zero if target.source is None else target.source)
        if has_sources
        else None,
    )


def cosine_loss(z: Tensor, table: TargetTable) -> Tensor:
    """Return −Σ_t w_t · cos(z, target t): the loss of CLIPAG's sampler (supplement, section 1.3).

    Args:
        z: unit-length embeddings (N, D).
        table: the targets of each embedding, with B = N rows.

    Returns:
        The losses, (N,).
    """
    return -((table.embeddings @ z[:, :, None]).squeeze(2) * table.weights).sum(dim=1)


def spherical_loss(z: Tensor, table: TargetTable) -> Tensor:
    """Return Σ_t w_t · θ²/2, where θ is the angle between z and target t (VQGAN+CLIP).

    Arguments and result are those of `cosine_loss`.
    """
    chord = (z[:, None] - table.embeddings).norm(dim=2)
    # Clamp below 1: asin's derivative diverges there.
    return _stopped(2 * (chord / 2).clamp(max=1 - 1e-6).asin() ** 2, table)


def directional_loss(z: Tensor, table: TargetTable) -> Tensor:
    """Return Σ_t w_t · (1 − cos(z − source t, target t)) (StyleGAN-NADA, CLIPStyler).

    Arguments and result are those of `cosine_loss`. The table must have sources.
    """
    if table.sources is None:
        raise ClipagError("Directions need a source: give one to each target.")
    change = z[:, None] - table.sources
    length = change.norm(dim=2).clamp_min(SHORTEST_CHANGE)
    return _stopped(1 - (change * table.embeddings).sum(dim=2) / length, table)


def _stopped(distance: Tensor, table: TargetTable) -> Tensor:
    """Sum weighted distances (N, T) over targets; below a target's stop its gradient is zero."""
    signed = distance * table.weights.sign()
    # Straight-through: the value keeps the distance, the gradient is that of `limited`.
    limited = signed.maximum(table.stops)
    total: Tensor = (table.weights.abs() * (signed.detach() + limited - limited.detach())).sum(
        dim=1
    )
    return total


def prompt_targets(
    model: ClipagModel, prompts: Sequence[Prompt], truncate: bool = False
) -> list[list[Target]]:
    """Return the targets of each prompt.

    Raises:
        ClipagError: there is no prompt, `text_target` refuses one, or one has no target.
    """
    if not prompts:
        raise ClipagError("There is no prompt: say what to draw.")
    targets = [
        [text_target(model, prompt, truncate=truncate)] if isinstance(prompt, str) else [*prompt]
        for prompt in prompts
    ]
    if not all(targets):
        raise ClipagError("A prompt has no target: give each picture at least one.")
    return targets


def goal_of(targets: Sequence[Target]) -> Target:
    """Return the one target that several stand for: the direction of their weighted sum."""
    total = torch.stack([target.weight * target.embedding for target in targets]).sum(dim=0)
    return Target(F.normalize(total, dim=0))


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
        text: the style, such as "a watercolor painting with purple brush".
        image: the image before it is styled, (3, H, W) in [0, 1].
        weight: how much the target counts.
        threshold: views whose 1 − cosine is below this do not pull any more (the paper's 0.7).
        source_text: what the image is, in words.
        templates: sentences with {} in place of the text. Both texts are averaged over them. By
            default the 80 with which OpenAI evaluated CLIP on ImageNet.
        truncate: cut texts of more than 77 tokens instead of refusing them.

    Raises:
        ClipagError: a text is empty, too long, or both mean the same.
    """
    if templates is None:
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    # Without the memory of pictures: a direction from text to text is blurred by what either text
    # recalls (measured by benchmarks/clipstyler.py).
    to, source = (
        _encode_text(model, t, templates, truncate, model.encode_words) for t in (text, source_text)
    )
    if (to - source).norm() < 1e-3:
        raise ClipagError(f"{text!r} and {source_text!r} mean the same to the model: name a style.")
    before = image_target(model, image).embedding
    return Target(F.normalize(to - source, dim=0), weight, threshold, before)


@torch.no_grad()
def text_embeddings(model: ClipagModel, texts: Sequence[str], truncate: bool = False) -> Tensor:
    """Return unit-length embeddings (N, D) of texts, encoded many at a time.

    Raises:
        ClipagError: a text is empty, or over 77 tokens and `truncate` is false.
    """
    tokens = torch.cat([_tokens(model, text, ["{}"], truncate) for text in texts])
    if isinstance(model, CLIP):
        # Its tokens attend to none after them, so nothing is computed for padding alone.
        longest = int(tokens.argmax(dim=1).max()) + 1  # the end of a text has the highest number
        tokens = tokens[:, : -(-longest // 8) * 8]  # kernels like multiples of 8
    parts = [model.encode_text(chunk.to(model.device)) for chunk in tokens.split(TEXTS_AT_ONCE)]
    return F.normalize(torch.cat(parts), dim=-1)


def _encode_text(
    model: ClipagModel,
    text: str,
    templates: Sequence[str],
    truncate: bool,
    encode: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the embedding (D,) of a text, of unit length, averaged over the templates."""
    tokens = _tokens(model, text, templates, truncate).to(model.device)
    z = F.normalize(encode(tokens), dim=-1)
    return F.normalize(z.mean(dim=0), dim=-1)


def _tokens(model: ClipagModel, text: str, templates: Sequence[str], truncate: bool) -> Tensor:
    """Put a text into each of T templates, and return the tokens (T, 77)."""
    if not text.strip():
        raise ClipagError(
            f"The text {text!r} is empty: write what the picture shows or should show."
        )
    try:
        text.encode("utf-8")
        texts = [template.replace("{}", text) for template in templates]
        return tokenize(texts, truncate=truncate)
    except UnicodeEncodeError as error:
        raise ClipagError(f"The prompt {text!r} is not valid text: type it as UTF-8.") from error
    except RuntimeError as error:
        raise ClipagError(
            f"The prompt {text[:40]!r}… has more than {model.context_length} tokens: "
            "shorten it, or set `truncate`."
        ) from error


@torch.no_grad()
def image_target(model: ClipagModel, image: Tensor, weight: float = 1.0) -> Target:
    """Encode an image (3, H, W) in [0, 1] as a target."""
    return Target(embed_images(model, image[None].to(model.device))[0], weight)


def embedding_target(model: ClipagModel, embedding: Tensor, weight: float = 1.0) -> Target:
    """Make a target of an image embedding (D,) of the model's own, of any length.

    Raises:
        ClipagError: it has another shape or width, is not finite, or is 0.
    """
    if embedding.ndim != 1:
        raise ClipagError(f"An embedding is (D,), not {tuple(embedding.shape)}.")
    if len(embedding) != model.visual.output_dim:
        raise ClipagError(
            f"The embedding has {len(embedding)} numbers, but those of {model.name} have "
            f"{model.visual.output_dim}: encode the picture with the model that guides."
        )
    embedding = embedding.detach().to(model.device, torch.float32)
    if not embedding.isfinite().all() or not embedding.any():
        raise ClipagError(
            "The embedding is 0 or holds values that are not finite: encode the picture again."
        )
    return Target(F.normalize(embedding, dim=0), weight)
