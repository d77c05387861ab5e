"""Draw pictures of ImageNet's classes from networks that were trained on them.

Nobody can ship ImageNet, but a network remembers what its classes look like. An impression
(DeepInversion: Yin et al., CVPR 2020) is a picture that pretrained trunks classify as its class
and that has the layer statistics of natural pictures. It is drawn on a pyramid of resolutions, many
classes in one batch: the statistics are those of a mixture of classes.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from clipag_plugins.base import CLIP_MEAN, CLIP_STD
from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside
from clipag_plugins.finetune.augment import placed
from clipag_plugins.finetune.embedded.pack import TRUNKS, decode, encode, frozen_trunk
from clipag_plugins.finetune.embedded.repeated import Repeated, assign_gradients
from clipag_plugins.finetune.embedded.statistics import Recorder, batch_distance, total
from clipag_plugins.finetune.embedded.trunk import CLASSES
from clipag_plugins.lite import LiteTower

RATE, BETAS = 0.02, (0.5, 0.9)
GAIN = 2.0  # of the pyramid's sum before the sigmoid
# Pose of a view: shift in half sides either way, turn in radians either way, zoom.
SHIFT, TURN, ZOOM = 0.2, 0.1, (0.85, 1.15)


@dataclass(frozen=True)
class Impressions:
    """How impressions are drawn.

    Attributes:
        side: of the pictures, in pixels.
        steps: Adam's updates.
        prior: weight of the statistics, next to 1 for the cross-entropy of the class.
        smoothness: weight of the total variation, at a side of 1 pixel.
        noise: standard deviation of the layers at the start.
        at_once: pictures in a batch.
        classes: how many of the 1,000 classes a round draws, at random.
        rounds: pictures of each class, at most.
        seconds: after which no new round begins.
    """

    side: int = 128
    steps: int = 150
    prior: float = 0.3
    smoothness: float = 0.02
    noise: float = 0.02
    at_once: int = 500
    classes: int = CLASSES
    rounds: int = 6
    seconds: float = 70.0


def normalised(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] with CLIP's mean and standard deviation removed."""
    # Channel by channel: a CUDA graph cannot record how a list of numbers becomes a tensor.
    channels = zip(images.unbind(dim=1), CLIP_MEAN, CLIP_STD, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)


class Drawing:
    """Draws batches of impressions, one picture of each class.

    Args:
        trunks: frozen trunks with their classifiers. What several agree on looks more like the
            class to a person, too.
        settings: how to draw.
        generator: source of all randomness, on the trunks' device.
    """

    def __init__(
        self,
        trunks: list[tuple[LiteTower, nn.Linear]],
        settings: Impressions,
        generator: torch.Generator,
    ):
        self.trunks, self.settings, self.generator = trunks, settings, generator
        self.device, count = generator.device, settings.at_once
        sides = [2**n for n in range(1, settings.side.bit_length()) if 2**n < settings.side]
        self.classes = torch.zeros(count, dtype=torch.long, device=self.device)
        self.layers = [
            torch.zeros(count, 3, side, side, device=self.device, requires_grad=True)
            for side in (*sides, settings.side)
        ]
        self.maps = [
            upsampling(layer.shape[-1], settings.side, self.device) for layer in self.layers
        ]
        self.rate = torch.tensor(RATE, device=self.device)
        self.optimizer = torch.optim.Adam(
            self.layers, lr=self.rate, betas=BETAS, capturable=self.device.type == "cuda"
        )
        self.recorders = [Recorder(tower, batch_distance) for tower, _ in trunks]
        self.repeat = Repeated(self._step, generator)

    def draw(self, classes: Tensor) -> Tensor:
        """Return pictures (B, 3, side, side) in [0, 1] of classes (B,)."""
        self.classes.copy_(classes)
        with torch.no_grad():
            for layer in self.layers:
                layer.normal_(0, self.settings.noise, generator=self.generator)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        for step in range(self.settings.steps):
            self.rate.fill_(RATE * (1 + math.cos(math.pi * step / self.settings.steps)) / 2)
            self.repeat()
        return render(self.layers, self.maps).detach()

    def _step(self) -> None:
        images = render(self.layers, self.maps)
        views = normalised(posed(images, self.generator))
        loss = self.settings.smoothness * self.settings.side**2 * total_variation(images)
        for (tower, classifier), recorder in zip(self.trunks, self.recorders, strict=True):
            with (
                torch.autocast(self.device.type, torch.bfloat16),
                recorder.recording() as distances,
            ):
                logits = classifier(tower.features(views))
            cross_entropy = F.cross_entropy(logits.float(), self.classes)
            prior = self.settings.prior * total(distances)
            loss = loss + (cross_entropy + prior) / len(self.trunks)
        assign_gradients(loss, self.layers)
        self.optimizer.step()


def upsampling(source: int, target: int, device: torch.device) -> Tensor:
    """Return the bicubic map (target, source) of one dimension, as a matrix.

    On a GPU products are faster than `interpolate`, whose backward pass adds thousands of pixels
    to one coarse value, one after another.
    """
    unit = torch.eye(source, device=device)[None, None]
    return F.interpolate(unit, size=(target, source), mode="bicubic")[0, 0]


def render(layers: list[Tensor], maps: list[Tensor]) -> Tensor:
    """Return the pictures (B, 3, side, side) in [0, 1] of a pyramid, with each layer's map."""
    enlarged = [each @ layer @ each.T for layer, each in zip(layers, maps, strict=True)]
    return torch.sigmoid(GAIN * torch.stack(enlarged).sum(dim=0))


def posed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, turn, zoom and flip each image (B, 3, S, S) at random; borders are reflected."""
    count, device = len(images), images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device) * (high - low) + low

    angle, zoom = uniform(-TURN, TURN), uniform(*ZOOM)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    shift = uniform(-SHIFT, SHIFT, 2).unbind(dim=1)
    return placed(images, angle, zoom, flip, shift, images.shape[-1], "reflection")


def total_variation(images: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels, a scalar."""
    right, down = images.diff(dim=3), images.diff(dim=2)
    return right.square().mean() + down.square().mean()


def draw_rounds(
    folder: Path, out: Path, settings: Impressions, seed: int, device: torch.device
) -> list[Path]:
    """Write the rounds of impressions that `out` lacks; return the paths of those that are there.

    Args:
        folder: that `pack` wrote.
        out: each round is a file of it.
        settings: how to draw, and how long.
        seed: of the first round.
        device: where to draw.

    Raises:
        ClipagError: `settings.classes` is not a multiple of `settings.at_once`.
    """
    if settings.classes % settings.at_once:
        raise ClipagError(
            f"`classes` is {settings.classes}: choose a multiple of {settings.at_once}, `at_once`."
        )
    paths = [out / f"impressions{number}.npz" for number in range(settings.rounds)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    start = time.monotonic()
    if missing:
        trunks = [frozen_trunk(folder, variant, device) for variant in TRUNKS]
        generator = torch.Generator(device)
        drawing = Drawing(trunks, settings, generator)
    for number in missing:
        if number and time.monotonic() - start > settings.seconds:
            break
        generator.manual_seed(seed + number)
        order = torch.randperm(CLASSES, generator=generator, device=device)[: settings.classes]
        batches = tqdm(order.split(settings.at_once), desc=paths[number].stem, unit="batch")
        pixels = torch.cat([drawing.draw(classes) for classes in batches])
        array = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        with write_beside(paths[number]) as temporary, temporary.open("wb") as file:
            data, lengths = encode(array)
            np.savez(file, data=data, lengths=lengths, classes=order.cpu().numpy())
    return [path for path in paths if path.exists()]


def load_rounds(paths: list[Path], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return impressions (N, 3, S, S) uint8 and their classes (N,)."""
    pixels, classes = [], []
    for path in paths:
        pixels.append(torch.from_numpy(decode(path, "RGB")).permute(0, 3, 1, 2))
        with np.load(path) as file:
            classes.append(torch.from_numpy(file["classes"]))
    return torch.cat(pixels).to(device), torch.cat(classes).to(device)
