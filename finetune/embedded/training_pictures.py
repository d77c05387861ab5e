"""The pictures that the robust tower is trained on, posed and lit at random on the device."""

import torch
from torch import Tensor
from torch.nn import functional as F

from clipag_plugins.finetune.augment import placed
from clipag_plugins.finetune.embedded.pack import Pack

NOISES = 256
# Ranges of zoom (above 1 the picture shrinks), and the largest shift in half sides. A tower that
# learns captions from details draws details at the border: so objects stay whole.
CORPUS_ZOOM, CORPUS_SHIFT = (0.9, 1.5), 0.2
DRAWING_ZOOM, DRAWING_SHIFT = (0.75, 1.15), 0.1
TURN = 0.25  # radians, either way
CONTRAST, BRIGHTNESS = (0.7, 1.15), 0.1
# Backgrounds by their share: impressions up to the first number, then noise, soft mixtures, single
# colours, and white.
BACKGROUNDS = (0.15, 0.35, 0.5, 0.7)


class TrainingPictures:
    """Random pictures of the corpus, impressions, and pictures that nobody labelled.

    Args:
        pack: the corpus.
        drawings: (N, 3, S, S) uint8 impressions.
        side: of the pictures that are returned.
        generator: source of all randomness, on the device of both.
    """

    def __init__(self, pack: Pack, drawings: Tensor, side: int, generator: torch.Generator):
        self.pack, self.drawings, self.side = pack, drawings, side
        self.generator, self.device = generator, generator.device
        self._noises = coloured_noise(NOISES, side, generator)

    def integers(self, below: int, count: int) -> Tensor:
        """Return random numbers (count,) from 0 to below - 1."""
        return torch.randint(below, (count,), generator=self.generator, device=self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return random numbers between two."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def of_corpus(self, numbers: Tensor) -> Tensor:
        """Return pictures of the corpus (B, 3, side, side) in random pose and light."""
        rgba = self.pack.pictures[numbers].float() / 255
        rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
        rgba = self._posed(rgba, CORPUS_ZOOM, CORPUS_SHIFT, "zeros")
        return self._lit(rgba[:, :3] + (1 - rgba[:, 3:]) * self._backgrounds(len(numbers)))

    def on_white(self, numbers: Tensor) -> Tensor:
        """Return pictures of the corpus (B, 3, side, side) as they are, on white."""
        rgba = self.pack.pictures[numbers].float() / 255
        white = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
        return F.interpolate(white, size=self.side, mode="bilinear", antialias=True).clamp(0, 1)

    def drawn(self, numbers: Tensor) -> Tensor:
        """Return impressions (B, 3, side, side) in random pose and light."""
        images = self.drawings[numbers].float() / 255
        return self._lit(self._posed(images, DRAWING_ZOOM, DRAWING_SHIFT, "reflection"))

    def unlabelled(self, count: int) -> Tensor:
        """Return mixtures of two impressions and coloured noise, (count, 3, side, side)."""
        mixed = count // 2
        first = self.drawn(self.integers(len(self.drawings), mixed))
        second = self.drawn(self.integers(len(self.drawings), mixed))
        share = self.uniform(0.2, 0.8, mixed, 1, 1, 1)
        noise = self._noises[self.integers(NOISES, count - mixed)]
        return torch.cat([first * share + second * (1 - share), self._lit(noise)])

    def _posed(
        self, images: Tensor, zooms: tuple[float, float], largest_shift: float, padding: str
    ) -> Tensor:
        count = len(images)
        angle, zoom = self.uniform(-TURN, TURN, count), self.uniform(*zooms, count)
        flip = torch.where(self.uniform(0, 1, count) < 0.5, -1.0, 1.0)
        shift = self.uniform(-largest_shift, largest_shift, 2, count).unbind(dim=0)
        return placed(images, angle, zoom, flip, shift, self.side, padding)

    def _backgrounds(self, count: int) -> Tensor:
        """Return backgrounds (count, 3, side, side) of all kinds."""
        soft = F.interpolate(self.uniform(0, 1, count, 3, 3, 3), size=self.side, mode="bicubic")
        drawing = self.drawings[self.integers(len(self.drawings), count)].float() / 255
        if drawing.shape[-1] != self.side:
            drawing = F.interpolate(drawing, size=self.side, mode="bilinear")
        kinds = (
            self.uniform(0, 1, count, 3, 1, 1).expand_as(soft),
            soft.clamp(0, 1),
            self._noises[self.integers(NOISES, count)],
            drawing,
        )
        kind = self.uniform(0, 1, count, 1, 1, 1)
        backgrounds = torch.ones_like(soft)
        for limit, images in zip(reversed(BACKGROUNDS), kinds, strict=True):
            backgrounds = torch.where(kind < limit, images, backgrounds)
        return backgrounds

    def _lit(self, images: Tensor) -> Tensor:
        shape = (len(images), 1, 1, 1)
        contrast = self.uniform(*CONTRAST, *shape)
        brightness = self.uniform(-BRIGHTNESS, BRIGHTNESS, *shape)
        return ((images - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def coloured_noise(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Return noise (count, 3, side, side) in [0, 1] with power spectra such as pictures have.

    After "Learning to See by Looking at Noise" (Baradad et al., NeurIPS 2021), section 3.2.
    """
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        values = torch.rand(count, *shape, generator=generator, device=device)
        return values * (high - low) + low

    noise = torch.randn(count, 3, side, side, generator=generator, device=device)
    frequency = torch.fft.fftfreq(side, device=device).square()
    radius = (frequency[:, None] + frequency[: side // 2 + 1]).sqrt().clamp_min(1 / side)
    spectrum = torch.fft.rfft2(noise) / radius ** uniform(0.5, 2.0, 1, 1, 1)
    images = torch.fft.irfft2(spectrum, s=(side, side))
    mixing = torch.randn(count, 3, 3, generator=generator, device=device)
    images = torch.einsum("bij,bjhw->bihw", mixing, images)
    images = images / images.std(dim=(1, 2, 3), keepdim=True)
    return (uniform(0, 1, 3, 1, 1) + uniform(0.05, 0.3, 1, 1, 1) * images).clamp(0, 1)
