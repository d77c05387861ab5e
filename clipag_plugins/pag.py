"""Perceptually aligned gradients (PAG): as images (the paper's Figure 3), and as a score.

A model's input gradient shows what the model would change in an image to match a text. In a vanilla
CLIP the gradient looks like noise. After adversarial training it shows what the text describes
(Ganz & Elad, WACV 2024, section 3).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from . import mixture
from .arguments import RunOptions
from .attack import unit_l2
from .base import ClipagModel
from .errors import ClipagError
from .guide import Guide
from .targets import Target, text_target

STEP = 0.03  # root mean square change of a pixel
MAX_VIEWS = 64  # images that the image tower sees at once
DIRECTIONS = 4  # random directions that a gradient is compared with


class Judge(Protocol):
    """A model that scores pictures: the product of two of its embeddings is their similarity."""

    name: str

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length embeddings (N, D) of texts."""


def input_gradient(model: ClipagModel, images: Tensor, targets: Sequence[Target]) -> Tensor:
    """Return the gradient (B, 3, H, W) of each image's similarity to its target.

    `images` are (B, 3, H, W) in [0, 1], and there is one target per image. A step along the
    gradient increases the similarity.
    """
    # A smoothed model sees several noisy copies of each image at once.
    copies = getattr(model.visual, "samples", 1)
    guide = Guide(
        model,
        [[target] for target in targets],
        options=RunOptions("float32", max_views=max(1, MAX_VIEWS // copies)),
    )
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(-guide.loss(images).sum(), images)
    return gradient


def gradient_images(gradient: Tensor) -> Tensor:
    """Return gradients (B, 3, H, W) as images in [0, 1]: 0 is grey, ±3 standard deviations 0 or 1.

    This is the display of Tsipras et al. ("Robustness May Be at Odds with Accuracy", ICLR 2019,
    Figure 2).
    """
    spread = gradient.flatten(1).std(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return (0.5 + gradient / (6 * spread)).clamp(0, 1)


def picture_alignment(
    model: ClipagModel, images: Tensor, texts: Sequence[str], pictures: Tensor
) -> Tensor:
    """Return how well the model's gradients point towards real pictures of their texts, (N,).

    Ganz, Kawar & Elad ("Do Perceptually Aligned Gradients Imply Robustness?", ICML 2023) call a
    gradient perceptually aligned if it points from the image towards an image of the class. The
    score is the cosine between the gradient and the direction to a picture of the text, minus the
    mean cosine for the pictures of the other texts, times 100. Directions that lead to any picture,
    such as more contrast, thus score 0. Unlike `judged_alignment`, the score needs no second model,
    which could share the first model's mistakes.

    Args:
        model: the model whose gradients are scored.
        images: where the gradients are taken, (N, 3, H, W) in [0, 1].
        texts: N different texts.
        pictures: one picture of each text, (N, 3, H, W) in [0, 1]. The model must not have been
            trained on them.

    Raises:
        ClipagError: there are fewer than two texts, or one cannot be encoded.
    """
    if len(texts) < 2:
        raise ClipagError("Alignment with pictures compares texts: give at least 2.")
    gradient = input_gradient(model, images, [text_target(model, text) for text in texts])
    direction, x, p = unit_l2(gradient).flatten(1), images.flatten(1), pictures.flatten(1)
    along = direction @ p.T - (direction * x).sum(dim=1, keepdim=True)
    # The distance of a picture to itself is rounding noise; keep it out of the denominator.
    cosines = along / torch.cdist(x, p).clamp_min(0.1)
    matching = cosines.diagonal()
    mean_of_others = (cosines.sum(dim=1) - matching) / (len(texts) - 1)
    return 100 * (matching - mean_of_others)


@torch.no_grad()
def judged_alignment(
    model: ClipagModel,
    judge: Judge,
    images: Tensor,
    texts: Sequence[str],
    step: float = STEP,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return how much a step along the model's gradient raises a judge's similarity, (B,).

    The score is the rise of the judge's similarity after a step along the model's unit gradient,
    minus its mean rise after random steps of the same length, times 100. A random gradient scores
    0. Only the gradient's direction counts, so a steep gradient gives no advantage. The score needs
    a judge, but no pictures of the texts. The judge must be neither the model nor a model trained
    with it or from it, because every model rates its own gradient highly, however meaningless the
    gradient is.

    Args:
        model: the model whose gradients are scored.
        judge: an independent model.
        images: (B, 3, H, W) in [0, 1], preferably far from 0 and 1, where steps are clipped.
        texts: one per image.
        step: length of the step, as a root mean square over pixels, for values in [0, 1].
        generator: source of the random directions, on the CPU; by default torch's own.

    Raises:
        ClipagError: a text is empty or has more than 77 tokens.
    """
    with torch.enable_grad():
        gradient = input_gradient(model, images, [text_target(model, text) for text in texts])
    length = step * images[0].numel() ** 0.5
    text_embeddings = judge.embed_texts(texts)

    def similarity(direction: Tensor) -> Tensor:
        moved = (images + length * unit_l2(direction)).clamp(0, 1)
        return (judge.embed_images(moved) * text_embeddings).sum(dim=1)

    noise = [torch.randn(images.shape, generator=generator) for _ in range(DIRECTIONS)]
    after_noise = torch.stack([similarity(direction.to(images)) for direction in noise])
    return 100 * (similarity(gradient) - after_noise.mean(dim=0))


def blobs(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw images (count, 3, side, side) from the embedded Gaussian mixture, in [0.2, 0.8]."""
    gaussians = mixture.load()
    samples = gaussians.sample(-(-count // len(gaussians.means)), generator)
    indices = torch.randperm(len(samples), generator=generator)[:count]
    return 0.2 + 0.6 * mixture.enlarge(samples[indices], side)


def picture_score(
    model: ClipagModel, texts: Sequence[str], pictures: Tensor, seed: int = 0
) -> Tensor:
    """Return the PAG score by pictures, (N,): the mean `picture_alignment` at two kinds of images.

    The gradient is taken at `blobs`, which are like the start of an ascent, and at the picture of
    another text.

    Args:
        model: the model whose gradients are scored.
        texts: N different texts.
        pictures: one picture of each text, (N, 3, H, W) in [0, 1]. The model must not have been
            trained on them.
        seed: of the blobs.

    Raises:
        ClipagError: there are fewer than two texts, or one cannot be encoded.
    """
    start = blobs(len(pictures), pictures.shape[-1], torch.Generator().manual_seed(seed))
    scores = [
        picture_alignment(model, images, texts, pictures)
        for images in (start.to(pictures), pictures.roll(1, dims=0))
    ]
    return torch.stack(scores).mean(dim=0).cpu()


def judged_score(
    model: ClipagModel,
    judge: Judge,
    texts: Sequence[str],
    side: int,
    batch: int = 50,
    seed: int = 0,
) -> Tensor:
    """Return the PAG score by a judge, (N,): `judged_alignment` at one of the `blobs` per text.

    Args:
        model: the model whose gradients are scored.
        judge: an independent model.
        texts: N texts.
        side: of the blobs, in pixels.
        batch: number of texts scored at once.
        seed: of the blobs and of the random directions.

    Raises:
        ClipagError: a text is empty or has more than 77 tokens.
    """
    start = blobs(len(texts), side, torch.Generator().manual_seed(seed)).to(model.device)
    generator = torch.Generator().manual_seed(seed)
    parts = [slice(i, i + batch) for i in range(0, len(texts), batch)]
    scores = [
        judged_alignment(model, judge, start[i], texts[i], generator=generator) for i in parts
    ]
    return torch.cat(scores).cpu()
