"""Perceptually aligned gradients: seen (the paper's Figure 3), and as a number.

What a model's input gradient would change in an image shows what the model looks for. In a
vanilla CLIP it is noise; after adversarial training it is what the text says (Ganz & Elad,
WACV 2024, section 3).
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

STEP = 0.03
MAX_VIEWS = 64  # images that a tower sees at once
DIRECTIONS = 4


class Judge(Protocol):
    """What judges pictures: embeddings whose products are similarities."""

    name: str

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length embeddings (N, D) of texts."""


def input_gradient(model: ClipagModel, images: Tensor, targets: Sequence[Target]) -> Tensor:
    """Return the gradient (B, 3, H, W) of each image's similarity to its own target.

    `images` are (B, 3, H, W) in [0, 1]. A step along the gradient makes them more similar.
    """
    copies = getattr(model.visual, "samples", 1)  # of each image, where the model is smoothed
    guide = Guide(
        model,
        [[target] for target in targets],
        options=RunOptions("float32", max_views=max(1, MAX_VIEWS // copies)),
    )
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(-guide.loss(images).sum(), images)
    return gradient


def gradient_images(gradient: Tensor) -> Tensor:
    """Return gradients (B, 3, H, W) as images: grey is 0, and ±3 standard deviations the ends.

    As Tsipras et al. show them ("Robustness May Be at Odds with Accuracy", 2019, Figure 2).
    """
    spread = gradient.flatten(1).std(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return (0.5 + gradient / (6 * spread)).clamp(0, 1)


def picture_alignment(
    model: ClipagModel, images: Tensor, texts: Sequence[str], pictures: Tensor
) -> Tensor:
    """Return how much nearer the model's gradient leads to real pictures of its text, (N,).

    Ganz, Kawar & Elad ("Do Perceptually Aligned Gradients Imply Robustness?", ICML 2023) call a
    gradient perceptually aligned where it points from the image to one of the class. This is the
    cosine of the gradient and the way to a picture of the text, less its mean over the pictures
    of the other texts: what leads to any picture, such as more contrast, is worth nothing. In
    hundredths. No second model takes part that could be wrong in the same way.

    Args:
        model: whose gradient is judged.
        images: where it is taken, (N, 3, H, W) in [0, 1].
        texts: N different ones.
        pictures: one of each text that the model was not trained on, (N, 3, H, W) in [0, 1].

    Raises:
        ClipagError: there are fewer than two texts, or one cannot be encoded.
    """
    if len(texts) < 2:
        raise ClipagError("Alignment with pictures compares texts: give at least 2.")
    gradient = input_gradient(model, images, [text_target(model, text) for text in texts])
    direction, x, p = unit_l2(gradient).flatten(1), images.flatten(1), pictures.flatten(1)
    along = direction @ p.T - (direction * x).sum(dim=1, keepdim=True)
    # From a picture to itself there is no way, only what rounding leaves of one.
    cosine = along / torch.cdist(x, p).clamp_min(0.1)
    own = cosine.diagonal()
    others = (cosine.sum(dim=1) - own) / (len(texts) - 1)
    return 100 * (own - others)


@torch.no_grad()
def judged_alignment(
    model: ClipagModel,
    judge: Judge,
    images: Tensor,
    texts: Sequence[str],
    step: float = STEP,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return how much a step along the model's gradient shows a judge of each text, (B,).

    It needs no pictures of the texts, but a judge. The score is the rise of the judge's
    similarity along the model's own unit gradient, less the mean rise along random directions of
    the same length, in hundredths of the cosine. Gradients are compared by direction alone, so a
    model cannot gain by steep ones; what any change of that length does, such as noise, is taken
    off; and whether a gradient means something is said by a judge that had no part in it. A
    random gradient scores 0. The judge must not be the model, nor have been trained with it or
    from it: a model likes its own gradient however meaningless it is.

    Args:
        model: whose gradient is judged.
        judge: an independent one.
        images: (B, 3, H, W) in [0, 1], best far from 0 and 1, where steps would be cut.
        texts: one an image.
        step: length of the step as a root mean square over pixels, for values in [0, 1].
        generator: of the random directions.

    Raises:
        ClipagError: a text is empty or has more than 77 tokens.
    """
    with torch.enable_grad():
        gradient = input_gradient(model, images, [text_target(model, text) for text in texts])
    length = step * images[0].numel() ** 0.5
    goals = judge.embed_texts(texts)

    def similarity(direction: Tensor) -> Tensor:
        moved = (images + length * unit_l2(direction)).clamp(0, 1)
        return (judge.embed_images(moved) * goals).sum(dim=1)

    noise = [torch.randn(images.shape, generator=generator) for _ in range(DIRECTIONS)]
    at_random = torch.stack([similarity(direction.to(images)) for direction in noise])
    return 100 * (similarity(gradient) - at_random.mean(dim=0))


def blobs(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Return images (count, 3, side, side) of the embedded mixture, in [0.2, 0.8]."""
    gaussians = mixture.load()
    drawn = gaussians.sample(-(-count // len(gaussians.means)), generator)
    chosen = torch.randperm(len(drawn), generator=generator)[:count]
    return 0.2 + 0.6 * mixture.enlarge(drawn[chosen], side)


def picture_score(
    model: ClipagModel, texts: Sequence[str], pictures: Tensor, seed: int = 0
) -> Tensor:
    """Return the PAG score by pictures, (N,): `picture_alignment`, the mean over two starts.

    The gradient is taken at blobs, where an ascent starts, and at another text's picture.

    Args:
        model: whose gradient is judged.
        texts: N different ones.
        pictures: one of each text that the model was not trained on, (N, 3, H, W) in [0, 1].
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
    """Return the PAG score by a judge, (N,): `judged_alignment` at blobs of this side, one a text.

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
