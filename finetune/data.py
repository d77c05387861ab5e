"""Training data in an order that does not depend on how many processes read it.

The data is read in `streams`, independent sequences whose order follows from the seed. A batch
takes one sample of each stream in turn, so sample i comes from stream i mod `streams`. A
process reads some of the streams. The `Position` in each goes into the checkpoint, and a run
resumes exactly from it, on as many processes or on another number.

A sample that cannot be read is counted, logged and skipped; so is the rest of a shard that
breaks off.
"""

import copy
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipag_plugins.errors import ClipagError
from clipag_plugins.finetune.settings import Config
from clipag_plugins.finetune.sources import (
    BROKEN,
    RawSample,
    Units,
    fingerprint,
    open_source,
    sample,
)

# A worker that was told to stop gives its process so many seconds to finish the update.
SECONDS_TO_FINISH = 30
LONGEST_REASON = 200  # characters of an error message in skipped.tsv


@dataclass
class Cursor:
    """Where a stream stands in one source.

    Attributes:
        epoch: passes over the source that are complete.
        unit: number of the unit, in this epoch's order of the stream's units.
        sample: samples of that unit that are done.
    """

    epoch: int = 0
    unit: int = 0
    sample: int = 0


@dataclass
class Position:
    """Where a stream stands.

    Attributes:
        given: samples that it has given.
        skipped: samples and rests of shards that could not be read.
        cursors: its place in each source.
    """

    given: int
    skipped: int
    cursors: list[Cursor]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Position":
        """Make it from what `dataclasses.asdict` gave."""
        cursors = [Cursor(**cursor) for cursor in values["cursors"]]
        return cls(values["given"], values["skipped"], cursors)


class Stream:
    """One endless sequence of samples, mixed from the sources by their weights.

    Args:
        config: the run.
        sources: the data.
        side: of the images, in stages that do not name one.
        number: which of the run's streams it is.
        log: file to which samples that cannot be read are appended.
    """

    def __init__(self, config: Config, sources: Sequence[Units], side: int, number: int, log: Path):
        self.config, self.sources, self.side = config, sources, side
        self.number, self.log = number, log
        weights = np.array([source.weight for source in config.data])
        self.shares = weights / weights.sum()
        self.position = Position(0, 0, [Cursor() for _ in sources])
        self._open: dict[int, Iterator[RawSample]] = {}
        self._orders: dict[int, tuple[int, Any]] = {}

    def next(self) -> tuple[Tensor, str]:
        """Return the next sample: (3, side, side) uint8, and its caption."""
        config, given = self.config, self.position.given
        draw = np.random.default_rng([config.seed, self.number, given])
        number = int(draw.choice(len(self.shares), p=self.shares))
        source, cursor = config.data[number], self.position.cursors[number]
        stage, _ = config.at(given // (config.batch // config.streams))
        failed_epochs, epoch = 0, cursor.epoch
        while True:
            raw = self._advance(number)
            if raw is None:
                failed_epochs += cursor.epoch != epoch
                epoch = cursor.epoch
                if failed_epochs > 1:
                    raise ClipagError(f"Nothing in {source.path} can be read: {self.log} says why.")
                continue
            try:
                pair = sample(raw, stage.side or self.side, config.crop, draw, source.augment)
            except BROKEN as error:
                self._skip(raw.name, error)
                continue
            self.position.given += 1
            return pair

    def _advance(self, number: int) -> RawSample | None:
        """Return the next sample of a source, undecoded, or None where a unit ended."""
        cursor = self.position.cursors[number]
        order = self._order(number, cursor.epoch)
        if number not in self._open:
            self._open[number] = self.sources[number].read(int(order[cursor.unit]))
            for _ in range(cursor.sample):  # resumed in the middle of a shard
                if self._read(number) is None:
                    break
        raw = self._read(number)
        if raw is not None:
            cursor.sample += 1
            return raw
        del self._open[number]
        cursor.unit, cursor.sample = cursor.unit + 1, 0
        if cursor.unit == len(order):
            cursor.epoch, cursor.unit = cursor.epoch + 1, 0
        return None

    def _read(self, number: int) -> RawSample | None:
        try:
            return next(self._open[number], None)
        except BROKEN as error:
            cursor = self.position.cursors[number]
            self._skip(f"unit {self._order(number, cursor.epoch)[cursor.unit]}", error)
            return None

    def _order(self, number: int, epoch: int) -> Any:
        """Return this stream's units of a source in an epoch's order."""
        cached, order = self._orders.get(number, (None, None))
        if cached != epoch:
            shuffle = np.random.default_rng([self.config.seed, number, epoch, 1])
            units = shuffle.permutation(len(self.sources[number]))
            order = units[self.number :: self.config.streams].copy()
            self._orders[number] = epoch, order
        return order

    def _skip(self, name: str, error: Exception) -> None:
        self.position.skipped += 1
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{name}\t{reason}\n")


class Block(NamedTuple):
    """What a worker reads at once: n samples of each of its m streams.

    Attributes:
        images: (n, m, 3, side, side) uint8.
        captions: n lists of m captions.
        positions: by the streams' numbers, after these samples.
    """

    images: Tensor
    captions: list[list[str]]
    positions: dict[int, Position]


class _Blocks(IterableDataset[Block | ClipagError]):
    """A decoding worker's share of the streams, block by block without end."""

    def __init__(self, streams: list[Stream], samples: int):
        self.streams, self.samples = streams, samples

    def __iter__(self) -> Iterator[Block | ClipagError]:
        worker = get_worker_info()
        shares = np.array_split(np.arange(len(self.streams)), worker.num_workers if worker else 1)
        streams = [self.streams[i] for i in shares[worker.id if worker else 0]]
        while True:
            try:
                pairs = [[stream.next() for stream in streams] for _ in range(self.samples)]
            except ClipagError as error:  # raised in a worker, it would come with a traceback
                yield error
                return
            images = torch.stack([torch.stack([image for image, _ in row]) for row in pairs])
            captions = [[caption for _, caption in row] for row in pairs]
            positions = {stream.number: copy.deepcopy(stream.position) for stream in streams}
            yield Block(images, captions, positions)


def _survive_signals(_: int) -> None:
    """Let a decoding worker outlive a signal to the whole group: its process needs it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_FINISH))


class Data:
    """The training data of one process, as micro-batches without end.

    Args:
        config: the run.
        side: of the images, in stages that do not name one.
        rank, processes: which part of every batch this process reads.
        folder: where `skipped.tsv` goes.

    Attributes:
        positions: by streams' numbers, after the last sample that was taken. Workers prefetch
            beyond it.
        fingerprint: digest of what the sources list.
    """

    def __init__(self, config: Config, side: int, rank: int, processes: int, folder: Path):
        sources = [open_source(source, config.streams) for source in config.data]
        self.fingerprint = fingerprint(sources)
        numbers = range(rank, config.streams, processes)
        log = folder / "skipped.tsv"
        self._streams = [Stream(config, sources, side, n, log) for n in numbers]
        self._samples = config.micro_batch // len(self._streams)  # of each stream
        self._workers = min(config.workers, len(self._streams))
        self._numbers = torch.tensor(numbers)
        self._config = config
        self._blocks: Iterator[Block | ClipagError] | None = None
        self.positions = {s.number: copy.deepcopy(s.position) for s in self._streams}

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """Return this process's positions as plain values, by the streams' numbers."""
        return {number: asdict(position) for number, position in self.positions.items()}

    def load_state_dict(self, state: dict[int, dict[str, Any]]) -> None:
        """Resume from the positions of all streams, as gathered from `state_dict`."""
        for stream in self._streams:
            stream.position = Position.from_dict(state[stream.number])
            self.positions[stream.number] = copy.deepcopy(stream.position)

    @property
    def skipped(self) -> int:
        """Samples of this process that could not be read."""
        return sum(position.skipped for position in self.positions.values())

    def take(self) -> tuple[Tensor, list[str]]:
        """Return the next micro-batch: (M, 3, side, side) uint8, and M captions."""
        if self._blocks is None:
            blocks = _Blocks(self._streams, self._samples)
            loader = DataLoader(
                blocks, batch_size=None, num_workers=self._workers, worker_init_fn=_survive_signals
            )
            self._blocks = iter(loader)
        parts: list[Block] = []
        for _ in range(max(1, self._workers)):
            block = next(self._blocks)
            if isinstance(block, ClipagError):
                raise block
            parts.append(block)
            self.positions |= block.positions
        images = torch.cat([part.images for part in parts], dim=1).flatten(0, 1)
        rows = zip(*(part.captions for part in parts), strict=True)
        return images, [caption for row in rows for share in row for caption in share]

    def indices(self, number: int) -> list[int]:
        """Return the places in the whole batch of the samples of micro-batch `number`."""
        rounds = torch.arange(number * self._samples, (number + 1) * self._samples)
        first = rounds * self._config.streams
        places: list[int] = (first[:, None] + self._numbers).flatten().tolist()
        return places
