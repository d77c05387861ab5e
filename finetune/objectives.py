"""What is trained for: objectives, each with the attack's loss and the weights' loss.

The text tower is frozen (paper, section 3), so every text embedding of the batch is known before
the first image is embedded.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.base import normalize
from clipag_plugins.errors import ClipagError
from clipag_plugins.finetune import processes
from clipag_plugins.finetune.settings import Dreams

Embed = Callable[[Tensor], Tensor]  # images (B, 3, S, S) in [0, 1] to embeddings (B, D)
EncodeText = Callable[[Sequence[str]], Tensor]  # texts to unit-length embeddings (N, D)


class Temperature(nn.Module):
    """The scale of the logits, CLIP's inverse temperature, stored as its logarithm.

    Args:
        scale: value to start from.
        largest: what it may not exceed where it is learnt.
        learnt: train it as well.
    """

    def __init__(self, scale: float, largest: float = 100.0, learnt: bool = False):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learnt)
        self._largest = math.log(largest)

    def forward(self, cosines: Tensor) -> Tensor:
        """Return the logits of cosines."""
        return self.logit_scale.exp() * cosines

    def average_gradient(self) -> None:
        """Average the gradient over the processes, as DDP does with the tower's."""
        if self.logit_scale.grad is not None:
            gradient = processes.total(self.logit_scale.grad) / processes.count()
            self.logit_scale.grad.copy_(gradient)

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring a learnt scale back into its range."""
        if self.logit_scale.requires_grad:
            self.logit_scale.clamp_(max=self._largest)


class Objective(ABC):
    """A loss over a batch, computed micro-batch by micro-batch.

    Every update calls, in this order:

    1. `begin`, with this process's captions of the batch;
    2. for each micro-batch: `references` of its clean images, `mismatch` at every step of the
       attack, and `extra_images`;
    3. if the objective is `coupled`, that is, if a picture's loss depends on the other pictures
       of the batch: `observe` for each micro-batch and version, then `agree`;
    4. `loss` for each micro-batch and version.

    A micro-batch is named by its `places`, a slice of this process's captions. Its pictures come in
    one version (attacked) or two (attacked 0, clean 1). `z` are the tower's raw embeddings: (M, D),
    for version 0 followed by those of the extra images.
    """

    coupled = False
    frozen_towers: tuple[nn.Module, ...] = ()  # that it compares the tower with
    dreams = Dreams()  # settings of the run's current stage, for the objective that dreams

    def begin(self, captions: Sequence[str], versions: int) -> None:  # noqa: B027
        """Take this process's captions of the batch, and the number of versions."""

    def references(self, images: Tensor) -> Tensor | None:
        """Return what `mismatch` and `loss` compare with, from clean images (M, 3, S, S)."""
        return None

    @abstractmethod
    def mismatch(self, z: Tensor, places: slice, references: Tensor | None) -> Tensor:
        """Return what the attack raises, summed over a micro-batch's embeddings (M, D)."""

    def extra_images(
        self, embed: Embed, images: Tensor, places: slice, generator: torch.Generator
    ) -> Tensor | None:
        """Return images (K, 3, S, S) that join a micro-batch of clean ones, or None."""
        return None

    def observe(self, z: Tensor, places: slice, version: int) -> None:  # noqa: B027
        """Take note of a micro-batch's embeddings, without their graph."""

    def agree(self) -> None:  # noqa: B027
        """Combine what all processes have observed."""

    @abstractmethod
    def loss(self, z: Tensor, places: slice, references: Tensor | None, version: int) -> Tensor:
        """Return what the weights lower, summed over a micro-batch's embeddings."""


class Candidates:
    """The texts that a picture's own text is told from, and each picture's number among them.

    Args:
        texts: unit-length embeddings (C, D).
        labels: (N,) numbers of the pictures' own texts.
        temperature: of the logits.
    """

    def __init__(self, texts: Tensor, labels: Tensor, temperature: Temperature):
        self.texts, self.labels, self._temperature = texts, labels, temperature

    def logits(self, z: Tensor) -> Tensor:
        """Return (B, C) logits of embeddings (B, D), in float32 at least."""
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        logits: Tensor = self._temperature(F.normalize(wide, dim=-1) @ self.texts.T)
        return logits

    def cross_entropy(self, logits: Tensor, places: slice) -> Tensor:
        """Return the cross-entropy of pictures with their texts, summed."""
        return F.cross_entropy(logits, self.labels[places], reduction="sum")


class Tecoa(Objective):
    """Supervised by class names (Mao et al., ICLR 2023): cross-entropy over all classes.

    Args:
        encode: embeds the classes.
        temperature: of the logits.
        classes: their names, as captions have them.
        template: what is made of a name, in the place of {}.
    """

    def __init__(
        self, encode: EncodeText, temperature: Temperature, classes: Sequence[str], template: str
    ):
        self._temperature = temperature
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._texts = encode([template.replace("{}", name) for name in classes])

    def begin(self, captions: Sequence[str], versions: int) -> None:
        """Look up the classes."""
        labels = labels_of(captions, self._numbers, self._texts.device)
        self._candidates = Candidates(self._texts, labels, self._temperature)

    def mismatch(self, z: Tensor, places: slice, references: Tensor | None) -> Tensor:
        """Return the cross-entropy of images with their texts."""
        return self._candidates.cross_entropy(self._candidates.logits(z), places)

    def loss(self, z: Tensor, places: slice, references: Tensor | None, version: int) -> Tensor:
        """Return the cross-entropy of images with their texts."""
        return self.mismatch(z, places, references)


class Clipag(Objective):
    """CLIPAG (paper, eq. 3): contrastive under attack.

    The paper attacks "to minimize the similarity between matching image–caption pairs" and
    says that eq. 3 is meant "while taking into account the fact that CLIP is trained over
    batches of pairs via contrastive learning". So the attack raises the contrastive loss's
    image → text half, which lowers that similarity against the other captions. As
    texts are frozen, this half needs no other picture: each attack is exact on its own, and no
    attack depends on who shares its micro-batch. The weights' loss has both halves.

    The text → image half couples the pictures, but only through one number a caption: the
    log-sum-exp of its logits over the batch. A first pass without graph collects these, a
    second adds their gradient micro-batch by micro-batch. That is GradCache (Gao et al., 2021)
    with N numbers in place of N embeddings, because one side is frozen.

    Pictures with the same caption are no negatives of each other: the texts are distinct
    captions. Where all captions of the batch differ this is CLIP's loss.

    Args:
        encode: embeds the captions.
        temperature: of the logits.
        candidates: the captions that a picture's own is told from; None are the batch's.
    """

    coupled = True

    def __init__(
        self,
        encode: EncodeText,
        temperature: Temperature,
        candidates: Sequence[str] | None = None,
    ):
        self._encode, self._temperature = encode, temperature
        self._all: tuple[dict[str, int], Tensor] | None = None
        if candidates is not None:
            numbers = {caption: number for number, caption in enumerate(candidates)}
            self._all = numbers, encode(candidates)

    def begin(self, captions: Sequence[str], versions: int) -> None:
        """Embed the batch's distinct captions, each process its share."""
        numbers, texts = self._all or self._batch_texts(captions)
        labels = labels_of(captions, numbers, texts.device)
        self._candidates = Candidates(texts, labels, self._temperature)
        self._labels = labels.expand(versions, -1)
        # For each text, the log-sum-exp of its logits over the pictures of *other* texts, and over
        # all images that belong to none.
        self._others = texts.new_full((versions, len(texts)), -torch.inf)
        self._own_logits = texts.new_zeros(
            versions, len(captions)
        )  # logits of pictures with their texts

    def _batch_texts(self, captions: Sequence[str]) -> tuple[dict[str, int], Tensor]:
        batch = [caption for part in processes.gather([*captions]) for caption in part]
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(batch))}
        names = list(numbers)
        share = -(-len(names) // processes.count())
        part = names[processes.rank() * share :][:share]
        part += names[:1] * (share - len(part))  # `stack` takes equal lengths
        return numbers, processes.stack(self._encode(part)).flatten(0, 1)[: len(names)]

    def mismatch(self, z: Tensor, places: slice, references: Tensor | None) -> Tensor:
        """Return the cross-entropy of images with their texts."""
        return self._candidates.cross_entropy(self._candidates.logits(z), places)

    def observe(self, z: Tensor, places: slice, version: int) -> None:
        """Add a micro-batch to the log-sum-exps, and store its pictures' own logits."""
        logits, labels = self._candidates.logits(z.detach()), self._candidates.labels[places, None]
        logits = logits.detach()
        self._own_logits[version, places] = logits[: len(labels)].gather(1, labels).squeeze(1)
        # Extra images come after the pictures and have no text of their own: they stay in.
        logits = logits.scatter(1, labels, -torch.inf)
        self._others[version] = torch.logaddexp(self._others[version], logits.logsumexp(dim=0))

    def agree(self) -> None:
        """Derive each text's gradient weight from the log-sum-exps of all processes.

        The softmax of picture j's text over the images has the denominator d_j: exp(own logit) of
        j, plus the exponentials of all images that do not belong to that text. The logit of an
        image with text c therefore has the gradient exp(logit) · Σ 1 / d_j, where j are the
        pictures of text c.
        """
        self._others = processes.stack(self._others).logsumexp(dim=0)
        others = self._others.gather(1, self._labels)
        self._log_denominators = torch.logaddexp(others, self._own_logits)
        # Relative to `others`, below every denominator, so that no exponential overflows.
        ratios = (others - self._log_denominators).exp()
        inverse = torch.zeros_like(self._others).scatter_add(1, self._labels, ratios)
        self._log_inverse = processes.total(inverse).log() - self._others

    def loss(self, z: Tensor, places: slice, references: Tensor | None, version: int) -> Tensor:
        """Return the mean of the cross-entropies of images with texts and of texts with images."""
        logits = self._candidates.logits(z)
        return 0.5 * (self._matching(logits, places) + self._picking(logits, places, version))

    def _matching(self, logits: Tensor, places: slice) -> Tensor:
        """Return the cross-entropy of images with texts."""
        return self._candidates.cross_entropy(logits[: places.stop - places.start], places)

    def _picking(self, logits: Tensor, places: slice, version: int) -> Tensor:
        """Return the cross-entropy of texts with images.

        Its value is that of this micro-batch's texts; its gradient is that of all texts with
        respect to this micro-batch's images.
        """
        own_logits = self._own_logits[version, places]
        log_denominators = self._log_denominators[version, places]
        with torch.no_grad():
            gradient = (logits + self._log_inverse[version]).exp()
            of_own = (own_logits - log_denominators).exp() - 1
            gradient = gradient.scatter(1, self._candidates.labels[places, None], of_own[:, None])
        surrogate = (gradient * logits).sum()
        return (log_denominators - own_logits).sum() + surrogate - surrogate.detach()


class Fare(Objective):
    """Unsupervised (FARE; Schlarmann et al., ICML 2024): keep the clean embedding under attack.

    Args:
        tower: as it was before training, frozen.
    """

    def __init__(self, tower: nn.Module):
        self.original = tower
        self.frozen_towers = (tower,)

    @torch.no_grad()
    def references(self, images: Tensor) -> Tensor:
        """Return the original tower's embeddings of clean images."""
        z: Tensor = self.original(normalize(images))
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def mismatch(self, z: Tensor, places: slice, references: Tensor | None) -> Tensor:
        """Return the squared distances from the original embeddings."""
        if references is None:
            raise ValueError("FARE compares with the original tower's embeddings")
        return F.mse_loss(z.to(references.dtype), references, reduction="sum")

    def loss(self, z: Tensor, places: slice, references: Tensor | None, version: int) -> Tensor:
        """Return the squared distances from the original embeddings."""
        return self.mismatch(z, places, references)


def labels_of(captions: Sequence[str], numbers: dict[str, int], device: torch.device) -> Tensor:
    """Return the captions' numbers (N,).

    Raises:
        ClipagError: a caption has none.
    """
    if unknown := next((caption for caption in captions if caption not in numbers), None):
        raise ClipagError(f"{unknown!r} is none of the {len(numbers)} captions of the data.")
    return torch.tensor([numbers[caption] for caption in captions], device=device)
