"""CLIPAG that learns from its own dreams.

A dream is what the sampler would draw: from a blurred other picture the tower ascends its own
similarity to a caption. It joins the batch as a negative of every caption, and of its own above
all. Whatever an ascent reaches although no artist drew it loses similarity, so that the gradient
comes to point past it, at pictures. This is adversarial training on the other side of the data
(Yin et al., "Learning Energy-Based Models With Adversarial Training", ECCV 2022; Augustin et al.,
RATIO, ECCV 2020).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clipag_plugins.attack import unit_l2
from clipag_plugins.finetune.objectives import Clipag, Embed

# Length of a step, L2 on 64 × 64 images in [0, 1], drawn anew for each dream, so that training
# meets every stretch of the sampler's path.
STEP_LENGTHS, REFERENCE_SIDE = (0.5, 2.0), 64
DETAILS = (2, 4, 8, 16)  # sides to which the starting pictures are reduced, in turn
NOISE = 0.1  # standard deviation, added to the starting pictures
# Both losses of dreams, next to 1 for the cross-entropy of images with texts.
WEIGHT = 0.5


class DreamingClipag(Clipag):
    """CLIPAG whose batch contains dreams for the first captions of every micro-batch.

    Its loss is the cross-entropy of images with texts, plus half that of texts with images, dreams
    among them, plus half the logistic loss of a picture against its dream. (Which other picture a
    dream starts from depends on the micro-batch: runs with another micro_batch or number of
    processes differ as by another seed.)

    Args:
        encode, temperature, candidates: as for `Clipag`.
    """

    def extra_images(
        self, embed: Embed, images: Tensor, places: slice, generator: torch.Generator
    ) -> Tensor:
        """Return the dreams (K, 3, S, S) of a micro-batch's first K captions."""
        count = self.dreams.count(len(images))
        steps = int(torch.randint(1, self.dreams.steps + 1, (1,), generator=generator))
        targets = self._candidates.texts[self._candidates.labels[places][:count]]
        start = blurred(images.roll(-1, dims=0)[:count], generator)
        return dream(embed, start, targets, steps, generator)

    def loss(self, z: Tensor, places: slice, references: Tensor | None, version: int) -> Tensor:
        """Return the three losses' sum; without dreams in this version, the first two's."""
        logits = self._candidates.logits(z)
        matching = self._matching(logits, places)
        picking = self._picking(logits, places, version)
        pictures = places.stop - places.start
        count = len(z) - pictures
        if not count:
            return matching + WEIGHT * picking
        labels = self._candidates.labels[places][:count, None]
        of_pictures = logits[:count].gather(1, labels)
        of_dreams = logits[pictures:].gather(1, labels)
        pairs = F.softplus(of_dreams - of_pictures).mean() * pictures
        loss: Tensor = matching + WEIGHT * (picking + pairs)
        return loss


def blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, 3, S, S) in [0, 1] without their detail, and with noise."""
    small = torch.empty_like(images)
    for number, detail in enumerate(DETAILS):
        if len(part := images[number :: len(DETAILS)]):
            reduced = F.interpolate(part, size=detail, mode="area")
            small[number :: len(DETAILS)] = F.interpolate(
                reduced, size=images.shape[-1], mode="bicubic"
            )
    noise = torch.randn(images.shape, generator=generator).to(images)
    return (small + NOISE * noise).clamp(0, 1)


def dream(
    embed: Embed, start: Tensor, targets: Tensor, steps: int, generator: torch.Generator
) -> Tensor:
    """Ascend the cosine with `targets` (B, D) from `start` (B, 3, S, S), along unit gradients."""
    shortest, longest = STEP_LENGTHS
    length = torch.rand(len(start), 1, 1, 1, generator=generator) * (longest - shortest) + shortest
    length = (length * start.shape[-1] / REFERENCE_SIDE).to(start)
    images = start
    for _ in range(steps):
        images.requires_grad_(True)
        z = embed(images)
        cosines = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1) * targets
        (gradient,) = torch.autograd.grad(cosines.sum(), images)
        with torch.no_grad():
            images = (images + length * unit_l2(gradient)).clamp(0, 1)
    return images.detach()
