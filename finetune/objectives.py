"""What is trained for: three objectives, each with the attack's loss and the weights' loss.

All see raw embeddings of the tower and a micro-batch's place in the batch. The text tower is
frozen (paper, section 3), so every text embedding of the batch is known before the first image
is looked at.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.base import normalize
from clipag_plugins.errors import ClipagError
from clipag_plugins.finetune import processes

EncodeText = Callable[[Sequence[str]], Tensor]


class Objective(ABC):
    """A loss over a batch, computed micro-batch by micro-batch.

    `coupled` says whether a picture's loss depends on the other pictures of the batch. If so,
    all micro-batches are shown to `observe` before the first `loss`.
    """

    coupled = False

    def begin(self, captions: Sequence[str], views: int) -> None:  # noqa: B027
        """Take this process' captions of the batch; pictures come in `views` versions."""

    def anchor(self, images: Tensor) -> Tensor | None:
        """Return what is known of clean images (M, 3, S, S) before they are attacked."""
        return None

    @abstractmethod
    def mismatch(self, z: Tensor, rows: slice, anchor: Tensor | None) -> Tensor:
        """Return what the attack raises, summed over a micro-batch's embeddings (M, D)."""

    def observe(self, z: Tensor, rows: slice, view: int) -> None:  # noqa: B027
        """Take note of a micro-batch's embeddings (M, D), without their graph."""

    def agree(self) -> None:  # noqa: B027
        """Put together what all processes have observed."""

    @abstractmethod
    def loss(self, z: Tensor, rows: slice, anchor: Tensor | None, view: int) -> Tensor:
        """Return what the weights lower, summed over a micro-batch's embeddings (M, D)."""


class Tecoa(Objective):
    """Supervised by class names (Mao et al., ICLR 2023): cross-entropy over all classes."""

    def __init__(self, texts: EncodeText, scale: float, classes: Sequence[str], template: str):
        self.scale = scale
        self.number = {name: i for i, name in enumerate(classes)}
        self.texts = texts([template.replace("{}", name) for name in classes])  # (C, D)

    def begin(self, captions: Sequence[str], views: int) -> None:
        """Look up the classes."""
        if strange := next((c for c in captions if c not in self.number), None):
            raise ClipagError(f"{strange!r} is none of the {len(self.number)} classes.")
        self.labels = torch.tensor([self.number[c] for c in captions], device=self.texts.device)

    def logits(self, z: Tensor) -> Tensor:
        """Return (M, C) logits of embeddings (M, D)."""
        return self.scale * F.normalize(z.float(), dim=-1) @ self.texts.T

    def mismatch(self, z: Tensor, rows: slice, anchor: Tensor | None) -> Tensor:
        """Return the cross-entropy of images with their texts."""
        return F.cross_entropy(self.logits(z), self.labels[rows], reduction="sum")

    def loss(self, z: Tensor, rows: slice, anchor: Tensor | None, view: int) -> Tensor:
        """Return the cross-entropy of images with their texts."""
        return self.mismatch(z, rows, anchor)


class Clipag(Tecoa):
    """CLIPAG (paper, eq. 3): contrastive under attack, over the whole batch's captions.

    The paper attacks "to minimize the similarity between matching image–caption pairs" and
    says that eq. 3 is meant "while taking into account the fact that CLIP is trained over
    batches of pairs via contrastive learning". So the attack raises the contrastive loss's
    image → text half, which lowers that similarity against the batch's other captions. As
    texts are frozen, this half needs no other picture: each attack is exact on its own, and no
    attack depends on who shares its micro-batch. The weights' loss has both halves.

    The text → image half couples the pictures, but only through one number a caption: the
    log-sum-exp of its logits over the batch. A first pass without graph collects these, a
    second adds their gradient micro-batch by micro-batch. That is GradCache (Gao et al., 2021)
    with N numbers in the place of N embeddings, because one side is frozen.

    Pictures of one caption are no negatives of each other: the texts are the batch's distinct
    captions. Where all captions differ this is CLIP's loss.
    """

    coupled = True

    def __init__(self, texts: EncodeText, scale: float):
        self._encode, self.scale = texts, scale

    def begin(self, captions: Sequence[str], views: int) -> None:
        """Embed the batch's distinct captions, each process its share."""
        every = [caption for part in processes.gather([*captions]) for caption in part]
        self.number = {caption: i for i, caption in enumerate(dict.fromkeys(every))}
        names = list(self.number)
        share = -(-len(names) // processes.count())  # all shares are filled up to one length
        mine = names[processes.rank() * share :][:share]
        mine += names[:1] * (share - len(mine))
        self.texts = processes.stack(self._encode(mine)).flatten(0, 1)[: len(names)]
        super().begin(captions, views)
        shape, device = (views, len(names)), self.texts.device
        # Over the batch's pictures of *other* captions, the log-sum-exp of a caption's logits.
        self.others = torch.full(shape, -torch.inf, device=device)
        self.own = torch.zeros(views, len(captions), device=device)

    def observe(self, z: Tensor, rows: slice, view: int) -> None:
        """Add a micro-batch to the log-sum-exps, and keep its own logits."""
        logits, labels = self.logits(z), self.labels[rows, None]
        self.own[view, rows] = logits.gather(1, labels).squeeze(1)
        logits = logits.scatter(1, labels, -torch.inf)
        self.others[view] = torch.logaddexp(self.others[view], logits.logsumexp(dim=0))

    def agree(self) -> None:
        """Derive each caption's gradient weights from the log-sum-exps of all processes."""
        self.others = processes.stack(self.others).logsumexp(dim=0)
        # log of the softmax's denominator, for each picture's caption among the pictures
        self.denominator = torch.logaddexp(self.others.gather(1, self._labels()), self.own)
        # A picture is a negative of every picture of another caption: log Σ_j 1 / denominator_j.
        inverse = torch.zeros_like(self.others).scatter_add(
            1, self._labels(), (self._reference() - self.denominator).exp()
        )
        self.inverse = processes.total(inverse).log() - self.others

    def _labels(self) -> Tensor:
        return self.labels.expand(len(self.own), -1)

    def _reference(self) -> Tensor:
        # Keeps the exponentials within range: no denominator is below it.
        return self.others.gather(1, self._labels())

    def loss(self, z: Tensor, rows: slice, anchor: Tensor | None, view: int) -> Tensor:
        """Return half the cross-entropy of images with texts, and half that of texts with images.

        The second half's value is that of this micro-batch's captions; its gradient is that of
        all captions with respect to this micro-batch's images.
        """
        logits, labels = self.logits(z), self.labels[rows, None]
        matching = F.cross_entropy(logits, self.labels[rows], reduction="sum")
        with torch.no_grad():
            slope = (logits + self.inverse[view]).exp()
            own = (self.own[view, rows] - self.denominator[view, rows]).exp() - 1
            slope = slope.scatter(1, labels, own[:, None])
            picking = (self.denominator[view, rows] - self.own[view, rows]).sum()
        surrogate = (slope * logits).sum()
        return 0.5 * (matching + picking + surrogate - surrogate.detach())


class Fare(Objective):
    """Unsupervised (FARE; Schlarmann et al., ICML 2024): keep the clean embedding under attack."""

    def __init__(self, tower: nn.Module):
        self.original = tower  # as it was before training, frozen

    @torch.no_grad()
    def anchor(self, images: Tensor) -> Tensor:
        """Return the original tower's embeddings of clean images."""
        z: Tensor = self.original(normalize(images)).float()
        return z

    def mismatch(self, z: Tensor, rows: slice, anchor: Tensor | None) -> Tensor:
        """Return the squared distances from the original embeddings."""
        return F.mse_loss(z.float(), anchor, reduction="sum")  # type: ignore[arg-type]

    def loss(self, z: Tensor, rows: slice, anchor: Tensor | None, view: int) -> Tensor:
        """Return the squared distances from the original embeddings."""
        return self.mismatch(z, rows, anchor)
