"""One update's gradient, exact for a batch of any size in the memory of a micro-batch.

Naive gradient accumulation is another loss where pictures are each other's negatives. GradCache
(Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021)
splits the step in two: a pass without graph that finds out how each picture's embedding weighs
on the loss, and a pass that embeds again, with graph, and backpropagates one micro-batch at a
time; the micro-batch that the first pass ends with keeps its graph for the second. Between the
passes the attacked pictures wait in a file: attacking them twice would cost much more than
writing and reading them, and both passes must see the same pictures.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipag_plugins.attack import ThreatModel, pgd
from clipag_plugins.base import normalize
from clipag_plugins.finetune import processes
from clipag_plugins.finetune.objectives import Objective

Embed = Callable[[Tensor], Tensor]
# rows of the batch, clean images, and what the objective knows of them
Part = tuple[slice, Tensor, Tensor | None]
# rows, what the objective knows, the version's number, and its images
View = tuple[slice, Tensor | None, int, Tensor]


class Spool:
    """Tensors of one shape and type in a file that is nobody's: a kill leaves nothing behind."""

    def __init__(self, folder: Path):
        # Unbuffered, as numpy writes past Python's buffer; open as long as this lives.
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
        """Forget all of them."""
        self._file.truncate(0)
        self._file.seek(0)


@dataclass
class Batch:
    """One process' part of a batch.

    Attributes:
        images: micro-batches (M, 3, S, S) uint8.
        captions: of all of them, in order.
        seeds: one for each, for the attack's random start: a picture's start depends neither
            on the process nor on the micro-batch that it is in.
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
        """Book the time since the last call on a part."""
        now = time.perf_counter()
        setattr(self, part, getattr(self, part) + now - self._began)
        self._began = now


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let a module's weights take no gradient, so that none of their products is computed."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def attack(
    embed: Embed,
    objective: Objective,
    threat_model: ThreatModel,
    images: Tensor,
    seeds: Sequence[int],
    rows: slice,
    anchor: Tensor | None,
) -> Tensor:
    """Return a micro-batch of images (M, 3, S, S) in [0, 1], attacked."""
    generator, shape = torch.Generator(), images[:1].shape
    noise = torch.cat([threat_model.noise(shape, generator.manual_seed(seed)) for seed in seeds])
    start = threat_model.start_at(images, noise)
    return pgd(
        images, lambda x: objective.mismatch(embed(x), rows, anchor), threat_model, start=start
    )


def gradient(
    tower: nn.Module,
    objective: Objective,
    threat_model: ThreatModel,
    batch: Batch,
    spool: Spool,
    *,
    clean_weight: float = 0.0,
    dtype: torch.dtype = torch.float32,
    times: Times | None = None,
) -> float:
    """Add the gradient of a whole batch's mean loss to the weights of a tower; return the loss.

    Args:
        tower: maps normalised images to embeddings; where there are several processes, each
            with its part of the batch, a `DistributedDataParallel` of one, or one that is
            sharded. It is in eval mode: no dropout and no statistics of the batch, or two
            passes would differ.
        objective: what is trained for.
        threat_model: what is trained against.
        batch: this process' part of the batch.
        spool: where attacked images wait, if the objective is coupled.
        clean_weight: weight of the same loss on the images as they are.
        dtype: what the tower computes in; bfloat16 by autocast.
        times: where the time goes.
    """
    times = times or Times()
    plain = tower.module if isinstance(tower, DistributedDataParallel) else tower
    device = next(plain.parameters()).device
    weights = (1.0, clean_weight) if clean_weight else (1.0,)
    micro, count = len(batch.images[0]), len(batch.images)
    # DDP averages over processes, and the mean is over the whole batch.
    share = processes.count() / batch.size
    total, left = torch.zeros((), device=device), count * len(weights)

    def embed(images: Tensor, module: nn.Module = plain) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            z: Tensor = module(normalize(images))
            return z

    def learn(z: Tensor, rows: slice, anchor: Tensor | None, view: int) -> None:
        part_loss = share * weights[view] * objective.loss(z, rows, anchor, view)
        part_loss.backward()
        total.add_(part_loss.detach())

    def part(number: int) -> Part:
        images = batch.images[number].to(device, torch.float32) / 255
        return slice(number * micro, (number + 1) * micro), images, objective.anchor(images)

    def attacked() -> Iterator[tuple[Part, Tensor]]:
        for number in range(count):
            rows, images, anchor = part(number)
            times.add("update")
            with frozen(plain):
                worst = attack(
                    embed, objective, threat_model, images, batch.seeds[rows], rows, anchor
                )
            times.add("attack")
            if objective.coupled:
                spool.append(worst)
            yield (rows, images, anchor), worst

    def views(made: Iterable[tuple[Part, Tensor]]) -> Iterator[View]:
        for (rows, clean, anchor), worst in made:
            for view, images in enumerate((worst, clean)[: len(weights)]):
                yield rows, anchor, view, images

    objective.begin(batch.captions, len(weights))
    todo = views(attacked())
    if objective.coupled:
        spool.clear()
        for number, shown in enumerate(todo, 1):
            rows, anchor, view, images = shown
            with torch.set_grad_enabled(number == left):  # it needs no second pass then
                z = embed(images, tower if left == 1 else plain)
            objective.observe(z.detach(), rows, view)
        objective.agree()
        learn(z, rows, anchor, view)
        left -= 1
        again = ((part(number), spool[number].to(device)) for number in range(count))
        todo = itertools.islice(views(again), left)
    for number, (rows, anchor, view, images) in enumerate(todo, 1):
        # DDP communicates once, at the end; until then the tower inside it adds up.
        learn(embed(images, tower if number == left else plain), rows, anchor, view)
    times.add("update")
    return float(processes.total(total) / processes.count())
