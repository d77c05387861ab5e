"""One update's gradient, exact for a batch of any size in the memory of a micro-batch.

Where pictures are each other's negatives, plain gradient accumulation computes another loss.
GradCache (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
2021) computes the large batch's in two passes:

1. Attack every micro-batch, embed it without a graph, and show the embeddings to the objective,
   which then knows each embedding's gradient.
2. Embed every micro-batch again, with its graph, and backpropagate one at a time.

The last micro-batch of the first pass keeps its graph, so it needs no second. Between the passes
the attacked pictures wait in a file: both passes must see the same ones, and to attack twice costs
much more than to write and read. An objective that is not coupled takes one pass.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipag_plugins import precision
from clipag_plugins.attack import ThreatModel, pgd
from clipag_plugins.base import normalize
from clipag_plugins.finetune import processes
from clipag_plugins.finetune.objectives import Objective

# Added to a picture's seed for its dreams, whose noise must not be that of its attack.
DREAM_SEED = 2**62


class Spool:
    """Tensors of one shape and type in a file without a name: a kill leaves nothing behind.

    Args:
        folder: where the file is made.
    """

    def __init__(self, folder: Path):
        # Unbuffered, as numpy writes past Python's buffer; open as long as this object lives.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._like: Tensor | None = None

    def append(self, tensor: Tensor) -> None:
        """Write a tensor at the end."""
        self._like = torch.empty_like(tensor, device="cpu")
        self._file.seek(0, 2)
        tensor.cpu().contiguous().view(torch.uint8).numpy().tofile(self._file)

    def __len__(self) -> int:
        if self._like is None:
            return 0
        return self._file.seek(0, 2) // self._like.nbytes

    def __getitem__(self, number: int) -> Tensor:
        """Read a tensor back, on the CPU."""
        if self._like is None or not 0 <= number < len(self):
            raise IndexError(number)
        self._file.seek(number * self._like.nbytes)
        values = torch.from_numpy(np.fromfile(self._file, np.uint8, self._like.nbytes))
        return values.view(self._like.dtype).view(self._like.shape)

    def clear(self) -> None:
        """Remove all tensors."""
        self._file.truncate(0)
        self._file.seek(0)


@dataclass
class Batch:
    """One process's part of a batch.

    Attributes:
        images: micro-batches (M, 3, S, S) uint8, all of one size.
        captions: of all of them, in order.
        seeds: one for each picture, for the attack's random start, which then depends neither
            on the process nor on the micro-batch that the picture is in.
        size: samples of the whole batch, over all processes.
    """

    images: Spool | list[Tensor]
    captions: Sequence[str]
    seeds: Sequence[int]
    size: int


@dataclass
class Times:
    """Seconds that the parts of an update took, added up."""

    data: float = 0.0
    attack: float = 0.0
    update: float = 0.0
    _began: float = field(default_factory=time.perf_counter)

    def add(self, part: str) -> None:
        """Add the time since the last call to a part."""
        now = time.perf_counter()
        setattr(self, part, getattr(self, part) + now - self._began)
        self._began = now


class MicroBatch(NamedTuple):
    """Clean images (M, 3, S, S) in [0, 1], their places in this process's part of the batch, and
    what the objective compares them with."""

    places: slice
    images: Tensor
    references: Tensor | None


class View(NamedTuple):
    """What the tower embeds at once: a micro-batch in one version, 0 attacked or 1 clean.

    `images` are (M, 3, S, S), in version 0 followed by the objective's extra images.
    """

    places: slice
    references: Tensor | None
    version: int
    images: Tensor


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Switch off the weights' gradients, so that their part of backpropagation is skipped."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def gradient(
    tower: nn.Module,
    objective: Objective,
    threat_model: ThreatModel,
    batch: Batch,
    spool: Spool,
    *,
    clean_weight: float = 0.0,
    dtype: torch.dtype | None = None,
    times: Times | None = None,
) -> float:
    """Add the gradient of a whole batch's mean loss to the weights of a tower; return the loss.

    Args:
        tower: maps normalised images to embeddings. With several processes, each of which has
            its part of the batch, it is a `DistributedDataParallel`, or sharded. It is in eval
            mode: with dropout or batch statistics, the two passes would differ.
        objective: what is trained for.
        threat_model: what is trained against.
        batch: this process's part of the batch.
        spool: where attacked images wait, if the objective is coupled.
        clean_weight: weight of the same loss on the images as they are.
        dtype: what the tower computes in, by autocast; None is the weights' own type.
        times: where the time goes.
    """
    update = _Update(
        tower, objective, threat_model, batch, spool, clean_weight, dtype, times or Times()
    )
    return update.run()


class _Update:
    """One call of `gradient`."""

    def __init__(
        self,
        tower: nn.Module,
        objective: Objective,
        threat_model: ThreatModel,
        batch: Batch,
        spool: Spool,
        clean_weight: float,
        dtype: torch.dtype | None,
        times: Times,
    ):
        self.tower = tower
        # DDP communicates in its backward pass. Only the last one may; before it, the tower
        # inside accumulates.
        self.plain = tower.module if isinstance(tower, DistributedDataParallel) else tower
        self.objective, self.threat_model = objective, threat_model
        self.batch, self.spool, self.times = batch, spool, times
        self.weights = (1.0, clean_weight) if clean_weight else (1.0,)  # of the versions
        weight = next(self.plain.parameters())
        self.device, self.image_type = weight.device, weight.dtype
        self.autocast = dtype if dtype != weight.dtype else None
        # The attack needs no gradient of the weights, so a copy of them is cast once. Autocast
        # casts them in each of its steps. What is sharded is too large to be copied.
        is_sharded = hasattr(weight, "device_mesh")
        self.frozen_copy: nn.Module | None = None
        if self.autocast is not None and not is_sharded:
            self.frozen_copy = precision.frozen_copy(self.plain, self.autocast)
        # DDP averages over processes, and the mean is over the whole batch.
        self.share = processes.count() / batch.size
        self.total = torch.zeros((), device=self.device, dtype=weight.dtype)

    def run(self) -> float:
        """Backpropagate all views; return the loss."""
        self.objective.begin(self.batch.captions, len(self.weights))
        count = len(self.batch.images) * len(self.weights)
        if self.objective.coupled:
            self.spool.clear()
            self.observe(self.attacked_views(), count)
            self.learn_from(itertools.islice(self.spooled_views(), count - 1), count - 1)
        else:
            self.learn_from(self.attacked_views(), count)
        self.times.add("update")
        return float(processes.total(self.total) / processes.count())

    def observe(self, views: Iterator[View], count: int) -> None:
        """Make the first pass over all views, and learn from the last."""
        for number, view in enumerate(views, 1):
            with torch.set_grad_enabled(number == count):
                z = self.embed(view.images, self.tower if count == 1 else self.plain)
            self.objective.observe(z.detach(), view.places, view.version)
        self.objective.agree()
        self.learn(z, view)

    def learn_from(self, views: Iterator[View], count: int) -> None:
        """Embed and backpropagate views one by one."""
        for number, view in enumerate(views, 1):
            z = self.embed(view.images, self.tower if number == count else self.plain)
            self.learn(z, view)

    def learn(self, z: Tensor, view: View) -> None:
        """Backpropagate one view's loss."""
        loss = self.objective.loss(z, view.places, view.references, view.version)
        loss = self.share * self.weights[view.version] * loss
        loss.backward()
        self.total += loss.detach()

    def embed(self, images: Tensor, tower: nn.Module | None = None) -> Tensor:
        """Return the tower's raw embeddings of images in [0, 1]."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            z: Tensor = (tower or self.plain)(normalize(images))
            return z

    def embed_frozen(self, images: Tensor) -> Tensor:
        """Return the same embeddings, whose graph leads to the images only."""
        if self.frozen_copy is None:
            return self.embed(images)
        z: Tensor = self.frozen_copy(normalize(images).to(self.autocast))
        return z

    def micro_batch(self, number: int) -> MicroBatch:
        """Return a micro-batch of clean images."""
        images = self.batch.images[number].to(self.device, self.image_type) / 255
        places = slice(number * len(images), (number + 1) * len(images))
        return MicroBatch(places, images, self.objective.references(images))

    def versions(self, part: MicroBatch, attacked: Tensor) -> Iterator[View]:
        """Yield the views of a micro-batch."""
        for version, images in enumerate((attacked, part.images)[: len(self.weights)]):
            yield View(part.places, part.references, version, images)

    def attacked_views(self) -> Iterator[View]:
        """Attack every micro-batch, and yield its views."""
        for number in range(len(self.batch.images)):
            part = self.micro_batch(number)
            self.times.add("update")
            with frozen(self.plain):
                attacked = self.attack(part)
            self.times.add("attack")
            # The last view keeps its graph, so nobody asks for it again.
            is_last = number == len(self.batch.images) - 1 and len(self.weights) == 1
            if self.objective.coupled and not is_last:
                self.spool.append(attacked)
            yield from self.versions(part, attacked)

    def spooled_views(self) -> Iterator[View]:
        """Yield the same views again, from the file."""
        for number in range(len(self.batch.images)):
            part = self.micro_batch(number)
            yield from self.versions(part, self.spool[number].to(self.device))

    def attack(self, part: MicroBatch) -> Tensor:
        """Return a micro-batch attacked, with the objective's extra images after it."""
        images, seeds = part.images, self.batch.seeds[part.places]
        # A GPU draws the noise itself: on the CPU that would take longer than the attack.
        place = self.device if self.device.type == "cuda" else "cpu"
        generator, shape = torch.Generator(place), images[:1].shape
        noise = [self.threat_model.noise(shape, generator.manual_seed(seed)) for seed in seeds]
        attacked = pgd(
            images,
            lambda x: self.objective.mismatch(self.embed_frozen(x), part.places, part.references),
            self.threat_model,
            start=self.threat_model.start_at(images, torch.cat(noise)),
        )
        dreams = torch.Generator().manual_seed((seeds[0] + DREAM_SEED) % 2**63)
        extra = self.objective.extra_images(self.embed_frozen, images, part.places, dreams)
        return attacked if extra is None else torch.cat([attacked, extra])
