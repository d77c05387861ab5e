"""CLIPStyler: repaint a photo in the style of a text, with and without a style network.

Kwon & Ye, "CLIPstyler: Image Style Transfer with a Single Text Condition", CVPR 2022. Without the
network the picture itself changes, as a pyramid of resolutions, which CLIPAG's gradients allow
(Ganz & Elad, WACV 2024).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from clipag_plugins.arguments import SMALLEST, RunOptions, check_steps, seeds_of
from clipag_plugins.ascent import Ascent, Callback, Penalty, ascend
from clipag_plugins.base import ClipagModel
from clipag_plugins.canvas import Canvas
from clipag_plugins.defaults import (
    STYLE_CONTENT,
    STYLE_CONTENT_WEIGHT,
    STYLE_NETWORK_STEPS,
    STYLE_PATCHES,
    STYLE_STEPS,
    STYLE_STRENGTH,
    STYLE_THRESHOLD,
    STYLE_TRAINING_SIZE,
    STYLE_TRAINING_STEPS,
    STYLE_TV,
    STYLE_WHOLE,
)
from clipag_plugins.errors import ClipagError
from clipag_plugins.guide import Guide
from clipag_plugins.integrations.clipstyler.content import ContentLoss, features_of
from clipag_plugins.integrations.clipstyler.network import StyleNetwork, new_network
from clipag_plugins.masks import MaskedCanvas
from clipag_plugins.multiscale import PyramidCanvas
from clipag_plugins.pictures import from_pil, read_picture
from clipag_plugins.prior.drawing import picture_targets
from clipag_plugins.targets import Target, image_target, style_target
from clipag_plugins.views import Views, one_view

RATE = 2e-3  # learning rate of Adam on a network's weights
STEP_SIZE = 0.03  # of a level of the pyramid: less than for a picture that starts from nothing
MOST_PATCHES = 4096
BATCH = 4  # photos that a training batch has
UPDATES_PER_BATCH = 4


@dataclass(frozen=True)
class Losses:
    """The weights of CLIPStyler's loss terms; a term of weight 0 is left out.

    Args:
        strength: weight of the style, that is, of both directional terms.
        patches: random crops for each update, each in a random perspective; their mean directional
            loss has weight 1.
        patch: side of a crop, as a share of the picture's shorter side.
        threshold: crops whose 1 − cosine to the style is below this stop pulling; 0 for never.
        whole: weight of the whole picture's directional loss.
        content: the network of the content features: "clip" for the model that guides, "vgg19",
            or the name of another model.
        content_weight: weight of the relative change of the content features.
        tv: weight of the total variation: the mean step from pixel to pixel along each axis.
        templates: average the texts over CLIP's 80 ImageNet templates.

    Raises:
        ClipagError: a value is out of its range, or no style term is left.
    """

    strength: float = STYLE_STRENGTH
    patches: int = STYLE_PATCHES
    patch: float = 0.4
    threshold: float = STYLE_THRESHOLD
    whole: float = STYLE_WHOLE
    content: str = STYLE_CONTENT
    content_weight: float = STYLE_CONTENT_WEIGHT
    tv: float = STYLE_TV
    templates: bool = True

    def __post_init__(self) -> None:
        for name in ("strength", "threshold", "whole", "content_weight", "tv"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ClipagError(f"`{name}` is {value}: choose a number, 0 or above.")
        if not 0 <= self.patches <= MOST_PATCHES:
            raise ClipagError(f"`patches` is {self.patches}: choose from 0 to {MOST_PATCHES}.")
        if not 0 < self.patch <= 1:
            raise ClipagError(f"`patch` is {self.patch}: choose a share of the side, up to 1.")
        if self.strength == 0 or self.patches == self.whole == 0:
            raise ClipagError(
                "There is no style term: `strength`, and `patches` or `whole`, must be above 0."
            )

    def target(
        self,
        model: ClipagModel,
        text: str,
        image: Tensor,
        seed: int = 0,
        options: RunOptions = RunOptions(),
    ) -> Target:
        """Return the directional target of an image (3, H, W).

        With `options.prior`, the direction leads from one image embedding to another.
        """
        if options.prior is not None:
            source, end = picture_targets(model, ["a Photo", text], [seed], options)
            change = F.normalize(end[0].embedding - source[0].embedding, dim=0)
            before = image_target(model, image).embedding
            return Target(change, self.strength, self.threshold, before)
        templates = None if self.templates else ["{}"]
        return style_target(
            model, text, image, self.strength, threshold=self.threshold, templates=templates,
            truncate=options.truncate,
        )  # fmt: skip

    def build(
        self,
        model: ClipagModel,
        targets: Sequence[Target],
        images: Tensor,
        seed: int = 0,
        options: RunOptions = RunOptions(),
    ) -> tuple[Guide, list[Penalty]]:
        """Return the guide and the penalties for images (B, 3, H, W), each with its own target."""

        def guide(weight: float, stop: float, views: Views | None) -> Guide:
            weighted = [[replace(t, weight=weight * t.weight, stop=stop)] for t in targets]
            seeds = [seed] * len(targets)
            return Guide(model, weighted, views or one_view, seeds=seeds, options=options)

        guides = []
        if self.patches:
            views = Views(
                0, self.patches, self.patch, noise=0.0, brightness=0.0, contrast=0.0,
                saturation=0.0, cutout=0.0, perspective=0.5,
            )  # fmt: skip
            guides.append(guide(1.0, self.threshold, views))
        if self.whole:
            guides.append(guide(self.whole, -math.inf, None))
        penalties: list[Penalty] = [other.loss for other in guides[1:]]
        if self.content_weight:
            features = features_of(self.content, model)
            penalties.append(ContentLoss(features, images, self.content_weight, seed))
        if self.tv:
            penalties.append(self._total_variation)
        return guides[0], penalties

    def _total_variation(self, images: Tensor) -> Tensor:
        from kornia.losses import total_variation  # imported late, since it takes a second

        variation: Tensor = total_variation(images, reduction="mean").mean(dim=1)
        return self.tv * variation


class StyleCanvas(Canvas):
    """Photos, repainted by a style network whose weights are the parameters.

    Args:
        content: photos, (B, 3, H, W) in [0, 1].
        network: by default a new one, which does not change the photos yet.
        rate: learning rate of Adam.
    """

    def __init__(self, content: Tensor, network: StyleNetwork | None = None, rate: float = RATE):
        super().__init__()
        self.network = StyleNetwork() if network is None else network
        self.network.to(content.device).requires_grad_(True)
        self.register_buffer("content", content.detach())
        self.content: Tensor
        self.rate = rate

    def render(self) -> Tensor:
        """Return the repainted photos, (B, 3, H, W) in [0, 1]."""
        images: Tensor = self.network(self.content)
        return images

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam on the network's weights."""
        return torch.optim.Adam(self.network.parameters(), lr=self.rate)


def style(
    image: Tensor,
    text: str,
    model: ClipagModel,
    *,
    losses: Losses = Losses(),
    network: StyleNetwork | bool = False,
    mask: Tensor | None = None,
    steps: int | None = None,
    seed: int = 0,
    callback: Callback | None = None,
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Repaint a photo in the style of a text.

    Args:
        image: (3, H, W) in [0, 1], of at least 16 pixels on each side.
        text: the style, such as "a watercolor painting with purple brush".
        model: the CLIP that guides.
        losses: the weights of the loss terms.
        network: False changes the picture itself; True trains a new style network; a given one is
            trained further, in place.
        mask: (1, 1, H, W) in [0, 1], as `masks.weight_of` returns it: how much each pixel may
            change. By default all of them.
        steps: number of updates; by default 40, and 100 with a network.
        seed: the same seed gives the same picture on the same machine.
        callback: as for `ascend`.
        options: precision, memory, compilation and progress bar.

    Returns:
        The ascent of one image, (1, 3, H, W). Ctrl-C ends it and keeps the best so far.

    Raises:
        ClipagError: an argument is out of its range, or the content network cannot be loaded.
    """
    steps = usual_steps(network) if steps is None else steps
    check_steps(steps)
    (seed,) = seeds_of(seed)
    content = image[None].to(model.device, torch.float32)
    check_sides(content)
    target = losses.target(model, text, content[0], seed, options)
    guide, penalties = losses.build(model, [target], content, seed, options)
    canvas: Canvas
    if network is False:
        canvas = PyramidCanvas(content, STEP_SIZE)
    else:
        canvas = StyleCanvas(content, new_network(seed) if network is True else network)
    if mask is not None:
        canvas = MaskedCanvas(canvas, content, mask.to(content))
    return ascend(canvas, guide, steps, None, callback, options.progress, penalties)


def usual_steps(network: StyleNetwork | bool) -> int:
    """Return how many updates suit one photo: a network needs more than the picture itself."""
    return STYLE_STEPS if network is False else STYLE_NETWORK_STEPS


def check_sides(images: Tensor) -> None:
    """Raise ClipagError if images (B, 3, H, W) are too small to be styled."""
    height, width = images.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ClipagError(
            f"A picture of {width} × {height} pixels is too small to style: "
            f"it needs at least {SMALLEST} on each side."
        )


def train(
    photos: Sequence[Path],
    text: str,
    model: ClipagModel,
    *,
    losses: Losses = Losses(),
    steps: int = STYLE_TRAINING_STEPS,
    batch: int = BATCH,
    size: int = STYLE_TRAINING_SIZE,
    seed: int = 0,
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Train one style network on many photos: CLIPStyler's fast variant.

    Args:
        photos: files, from which every batch is drawn at random.
        text: the style.
        model: the CLIP that guides.
        losses: the weights of the loss terms.
        steps: number of updates of the network.
        batch: photos in a batch.
        size: side of the square that is cut from the middle of each photo.
        seed: the same seed gives the same network on the same machine.
        options: precision, memory, compilation and progress bar.

    Returns:
        The ascent of the last batch, with the steps of all batches. Its canvas, a `StyleCanvas`,
        holds the trained network, frozen. Ctrl-C ends the training and keeps the network.

    Raises:
        ClipagError: there is no photo, one cannot be read, or an argument is out of its range.
    """
    if steps < 1 or batch < 1:
        raise ClipagError(f"`steps` is {steps} and `batch` {batch}: each is at least 1.")
    if not photos:
        raise ClipagError("There is no photo to train on.")
    (seed,) = seeds_of(seed)
    generator = torch.Generator().manual_seed(seed)
    network, optimizer = new_network(seed).to(model.device), None
    direction: Target | None = None
    ascent: Ascent | None = None
    done = 0
    try:
        with tqdm(total=steps, unit="step", disable=not options.progress) as bar:
            while ascent is None or (done < steps and not ascent.interrupted):
                numbers = torch.randint(len(photos), (batch,), generator=generator).tolist()
                squares = [from_pil(read_picture(photos[i]), (size, size)) for i in numbers]
                content = torch.stack(squares).to(model.device)
                # The direction of the text is the same for all photos; the source is each photo's.
                direction = direction or losses.target(model, text, content[0], seed, options)
                targets = [
                    replace(direction, source=image_target(model, photo).embedding)
                    for photo in content
                ]
                guide, penalties = losses.build(model, targets, content, seed + done, options)
                canvas = StyleCanvas(content, network)
                optimizer = optimizer or canvas.optimizer()  # one for all batches
                updates = min(UPDATES_PER_BATCH, steps - done)
                ascent = ascend(canvas, guide, updates, optimizer, None, False, penalties)
                done += ascent.steps
                bar.update(ascent.steps)
    except KeyboardInterrupt:  # between two batches
        if ascent is None:
            raise
        ascent.interrupted = True
    network.requires_grad_(False)
    return replace(ascent, steps=done)


@torch.no_grad()
def apply(network: StyleNetwork, image: Tensor) -> Tensor:
    """Repaint one image (3, H, W) in [0, 1] with a trained network."""
    check_sides(image[None])
    repainted: Tensor = network(image[None])[0]
    return repainted
