"""CLIPStyler: a photo repainted in the style of a text, with and without a style network.

Kwon & Ye, "CLIPstyler: Image Style Transfer with a Single Text Condition", CVPR 2022. Without its
network the pixels themselves are changed, as CLIPAG's gradients allow (Ganz & Elad, WACV 2024).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from clipag_plugins.arguments import SMALLEST, RunOptions, seeds_of
from clipag_plugins.ascent import Ascent, Callback, Penalty, ascend
from clipag_plugins.base import ClipagModel
from clipag_plugins.canvas import Canvas, PixelCanvas
from clipag_plugins.errors import ClipagError
from clipag_plugins.guide import Guide
from clipag_plugins.integrations.clipstyler.content import ContentLoss, features_of
from clipag_plugins.integrations.clipstyler.network import StyleNetwork
from clipag_plugins.pictures import from_pil, read_picture
from clipag_plugins.targets import Target, image_target, style_target
from clipag_plugins.views import Views, one_view

STEPS = 100
SIZE = 512  # of the longer side
RATE = 2e-3  # of Adam on a network's weights
STEP_SIZE = 0.02  # of the pixels, as a root mean square
MOST_PATCHES = 4096
TRAINING_STEPS = 400
TRAINING_SIDE = 224  # as CLIPStyler's fast variant crops its photos
BATCH = 4
LOOKS = 4  # updates on a batch of photos before the next one


@dataclass(frozen=True)
class Losses:
    """CLIPStyler's terms and what each weighs; one that weighs nothing is left out.

    Args:
        strength: weight of the style: of both directional terms.
        patches: random crops an update, each tilted; their mean directional loss weighs 1.
        patch: side of a crop, as a share of the picture's shorter side.
        threshold: crops nearer to the style than this, in 1 − cosine, stop leading; 0 is never.
        whole: weight of the whole picture's directional loss.
        content: whose features hold the content: "clip", the model's own, "vgg19", or the name
            of another model.
        content_weight: weight of the relative change of these features.
        tv: weight of the total variation: along each axis, the mean step from pixel to pixel.
        templates: average the texts over CLIP's 80 ImageNet templates.

    Raises:
        ClipagError: a value is out of its range, or no style term is left.
    """

    strength: float = 1.0
    patches: int = 32
    patch: float = 0.4
    threshold: float = 0.0
    whole: float = 500 / 9000  # the paper's weights
    content: str = "clip"
    content_weight: float = 0.05
    tv: float = 0.0
    templates: bool = True

    def __post_init__(self) -> None:
        for name in ("strength", "threshold", "whole", "content_weight", "tv"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ClipagError(f"{name} is {value}: choose a number, 0 or above.")
        if not 0 <= self.patches <= MOST_PATCHES:
            raise ClipagError(f"patches is {self.patches}: choose from 0 to {MOST_PATCHES}.")
        if not 0 < self.patch <= 1:
            raise ClipagError(f"patch is {self.patch}: choose a share of the side, up to 1.")
        if self.strength == 0 or self.patches == self.whole == 0:
            raise ClipagError("No style is left: strength, and patches or whole, must be above 0.")

    def target(
        self, model: ClipagModel, text: str, image: Tensor, truncate: bool = False
    ) -> Target:
        """Return what leads image (3, H, W) towards the style."""
        templates = None if self.templates else ["{}"]
        return style_target(
            model, text, image, self.strength, threshold=self.threshold, templates=templates,
            truncate=truncate,
        )  # fmt: skip

    def build(
        self,
        model: ClipagModel,
        targets: Sequence[Target],
        images: Tensor,
        seed: int = 0,
        precision: str = "auto",
        max_views: int = 64,
    ) -> tuple[Guide, list[Penalty]]:
        """Return the guide and the penalties for images (B, 3, H, W), with a target each."""

        def guide(weight: float, stop: float, views: Views | None) -> Guide:
            weighed = [[replace(t, weight=weight * t.weight, stop=stop)] for t in targets]
            seeds = [seed] * len(targets)
            options = RunOptions(precision, max_views)
            return Guide(model, weighed, views or one_view, seeds=seeds, options=options)

        guides = []
        if self.patches:
            views = Views(
                0, self.patches, self.patch, noise=0.0, brightness=0.0, contrast=0.0,
                saturation=0.0, cutout=0.0, perspective=0.5,
            )  # fmt: skip
            guides.append(guide(1.0, self.threshold, views))
        if self.whole:
            guides.append(guide(self.whole, -math.inf, None))
        penalties: list[Penalty] = [further.loss for further in guides[1:]]
        if self.content_weight:
            features = features_of(self.content, model)
            penalties.append(ContentLoss(features, images, self.content_weight, seed))
        if self.tv:
            penalties.append(self._total_variation)
        return guides[0], penalties

    def _total_variation(self, images: Tensor) -> Tensor:
        from kornia.losses import total_variation  # here, since it takes a second to import

        variation: Tensor = total_variation(images, reduction="mean").mean(dim=1)
        return self.tv * variation


class StyleCanvas(Canvas):
    """What a style network makes of photos; the network is what changes.

    Args:
        content: photos, (B, 3, H, W) in [0, 1].
        network: by default a new one, which leaves the photos as they are.
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
        """Return the photos repainted, (B, 3, H, W) in [0, 1]."""
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
    losses: Losses | None = None,
    network: StyleNetwork | bool = True,
    steps: int = STEPS,
    seed: int = 0,
    truncate: bool = False,
    precision: str = "auto",
    max_views: int = 64,
    callback: Callback | None = None,
    progress: bool = True,
) -> Ascent:
    """Repaint a photo in the style of a text.

    Args:
        image: (3, H, W) in [0, 1], of at least 16 pixels a side.
        text: the style, as "a watercolor painting with purple brush".
        model: the CLIP that guides.
        losses: the terms and their weights.
        network: True trains a new style network, one that is given is trained further, in
            place; False changes the pixels themselves.
        steps: updates.
        seed: the same seed gives the same picture on the same machine.
        truncate: cut a text of more than 77 tokens instead of refusing it.
        precision, max_views: see `Guide`.
        callback: called by the loop as `ascend` says.
        progress: show a progress bar.

    Returns:
        The ascent of one image, (1, 3, H, W). Ctrl-C ends it and keeps the best so far.

    Raises:
        ClipagError: an argument is out of its range, or the content network cannot be had.
    """
    if steps < 1:
        raise ClipagError(f"steps is {steps}: an ascent takes at least 1.")
    (seed,) = seeds_of(seed)
    losses = losses or Losses()
    content = image[None].to(model.device, torch.float32)
    check_sides(content)
    target = losses.target(model, text, content[0], truncate)
    guide, penalties = losses.build(model, [target], content, seed, precision, max_views)
    torch.manual_seed(seed)
    canvas: Canvas
    if network is False:
        canvas = PixelCanvas(content, STEP_SIZE)
    else:
        canvas = StyleCanvas(content, None if network is True else network)
    return ascend(canvas, guide, steps, None, callback, progress, penalties)


def check_sides(images: Tensor) -> None:
    """Raise ClipagError if images (B, 3, H, W) are too small to be seen."""
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
    losses: Losses | None = None,
    steps: int = TRAINING_STEPS,
    batch: int = BATCH,
    size: int = TRAINING_SIDE,
    seed: int = 0,
    truncate: bool = False,
    precision: str = "auto",
    max_views: int = 64,
    progress: bool = True,
) -> tuple[StyleNetwork, int]:
    """Train one style network on many photos: CLIPStyler's fast variant.

    Args:
        photos: pictures, of which every batch is drawn at random.
        text: the style.
        model: the CLIP that guides.
        losses: the terms and their weights.
        steps: updates of the network.
        batch: photos that it sees at once.
        size: side of the square that is cut from the middle of each.
        seed: the same seed gives the same network on the same machine.
        truncate: cut a text of more than 77 tokens instead of refusing it.
        precision, max_views: see `Guide`.
        progress: show a progress bar.

    Returns:
        The network and the updates it had. Ctrl-C ends the training and keeps what it learned.

    Raises:
        ClipagError: there is no photo, one cannot be read, or an argument is out of its range.
    """
    if steps < 1 or batch < 1:
        raise ClipagError(f"steps is {steps} and batch {batch}: each is at least 1.")
    if not photos:
        raise ClipagError("There is no photo to train on.")
    (seed,) = seeds_of(seed)
    losses = losses or Losses()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network, optimizer = StyleNetwork().to(model.device), None
    direction: Target | None = None
    done = 0
    try:
        with tqdm(total=steps, unit="step", disable=not progress) as bar:
            while done < steps:
                drawn = torch.randint(len(photos), (batch,), generator=generator).tolist()
                squares = [from_pil(read_picture(photos[i]), (size, size)) for i in drawn]
                content = torch.stack(squares).to(model.device)
                # The text's direction is the same for all; where it starts is each photo's own.
                direction = direction or losses.target(model, text, content[0], truncate)
                targets = [
                    replace(direction, source=image_target(model, photo).embedding)
                    for photo in content
                ]
                guide, penalties = losses.build(
                    model, targets, content, seed + done, precision, max_views
                )
                canvas = StyleCanvas(content, network)
                optimizer = optimizer or canvas.optimizer()  # one for all batches
                looks = min(LOOKS, steps - done)
                ascent = ascend(canvas, guide, looks, optimizer, None, False, penalties)
                done += ascent.steps
                bar.update(ascent.steps)
                if ascent.interrupted:
                    break
    except KeyboardInterrupt:  # between two batches
        if done == 0:
            raise
    return network.requires_grad_(False), done


@torch.no_grad()
def apply(network: StyleNetwork, image: Tensor) -> Tensor:
    """Repaint one image (3, H, W) in [0, 1] with a trained network, in one pass."""
    check_sides(image[None])
    repainted: Tensor = network(image[None])[0]
    return repainted
