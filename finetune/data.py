"""Image–caption pairs in an order that does not depend on how many processes read them.

The data is read in `streams`, independent sequences whose order follows from the seed. A batch
takes one sample of each stream in turn, so sample i comes from stream i mod `streams`. A
process reads some of the streams, and the position in each is a few integers that go into the
checkpoint: that is all it takes to go on exactly, with as many processes or another number.

A sample that cannot be read is counted, logged and skipped; so is the rest of a shard that
breaks off.
"""

import contextlib
import csv
import io
import itertools
import json
import math
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipag_plugins.errors import ClipagError, library
from clipag_plugins.finetune.config import Config, Source
from clipag_plugins.finetune.embedded import corpus

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
CAPTIONS = ("caption", "text", "title")
# What broken files and broken rows raise, from PIL, tarfile, json and the system.
BROKEN = (
    OSError, ValueError, KeyError, TypeError, SyntaxError, EOFError, Image.DecompressionBombError,
)  # fmt: skip

Raw = tuple[str, Any, str | None]  # name, the picture in some form, caption


class Units(Protocol):
    """A source as units that are visited in random order: rows, or shards."""

    def __len__(self) -> int:
        """Return the number of units."""

    def read(self, unit: int) -> Iterator[Raw]:
        """Yield the samples of a unit: name, picture (bytes, path or PIL) and caption."""


class Rows:
    """A source whose units are single samples: pictures and captions; None is the .txt beside."""

    def __init__(self, rows: Sequence[tuple[Path, str | None]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, unit: int) -> Iterator[Raw]:
        """Yield the one sample of a row."""
        path, caption = self.rows[unit]
        yield str(path), path, _caption_beside(path) if caption is None else caption


class CorpusRows:
    """One split of the corpus that the embedded models are made from."""

    def __init__(self, folder: Path, split: str):
        if not (folder / "captions.json").is_file():
            raise ClipagError(
                f"{folder} holds no corpus: make it with "
                f"python -m clipag_plugins.finetune.embedded.corpus --work {folder}, or name your "
                "own data in a copy of the config."
            )
        self.pixels, rows = corpus.load(folder)
        self.file = folder / "pictures.npy"
        self.rows = [row for row in rows if row.split == split]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, unit: int) -> Iterator[Raw]:
        """Yield the one sample of a row."""
        row, shape = self.rows[unit], self.pixels.shape[1:]
        # Read, not mapped: pages that were looked at once would count as memory from then on.
        size = math.prod(shape)
        first = self.pixels.offset + row.index * size
        pixels = np.fromfile(self.file, np.uint8, size, offset=first).reshape(shape)
        yield f"{row.source}/{row.name}", Image.fromarray(pixels), row.caption


class Shards:
    """Webdataset shards. Where there are fewer than streams, each is shared by several."""

    def __init__(self, path: str | list[str], streams: int):
        expand_urls = library("webdataset.shardlists", "finetune").expand_urls
        given = [path] if isinstance(path, str) else path
        paths = [os.path.expanduser(each) for each in given]  # noqa: PTH111 (a URL is no Path)
        self.urls: list[str] = [url for pattern in paths for url in expand_urls(pattern)]
        if len(paths) == 1 and Path(paths[0]).is_dir():
            self.urls = sorted(map(str, Path(paths[0]).glob("*.tar")))
        self.parts = -(-streams // max(1, len(self.urls)))

    def __len__(self) -> int:
        return len(self.urls) * self.parts

    def read(self, unit: int) -> Iterator[Raw]:
        """Yield the samples of a shard, or every few of them where streams share it."""
        from webdataset import tarfile_samples

        url, part = self.urls[unit // self.parts], unit % self.parts
        broken: list[Exception] = []

        def handler(error: Exception) -> bool:
            broken.append(error)
            return True

        for number, sample in enumerate(tarfile_samples([{"url": url}], handler=handler)):
            if number % self.parts == part:
                yield f"{url}/{sample.get('__key__')}", *_members(sample)
        if broken:
            raise OSError(f"the shard breaks off: {broken[0]}")


def _members(sample: dict[str, Any]) -> tuple[Any, str | None]:
    """Return the picture and the caption of a webdataset sample, in any of img2dataset's forms."""
    picture = next((sample[s[1:]] for s in PICTURES if s[1:] in sample), None)
    if "txt" in sample:
        return picture, sample["txt"].decode("utf-8", "replace")
    if "json" not in sample:
        return picture, None
    try:
        row = json.loads(sample["json"])
        return picture, next((row[key] for key in CAPTIONS if row.get(key)), None)
    except (ValueError, AttributeError):
        return picture, None


def open_source(source: Source, streams: int = 1) -> Units:
    """Find the units of a source.

    Raises:
        ClipagError: there is nothing there, or less than one unit for every stream.
    """
    units: Units
    where = Path(source.path if isinstance(source.path, str) else "").expanduser()
    if source.kind == "shards":
        units = Shards(source.path, streams)
    elif source.kind == "corpus":
        units = CorpusRows(where, source.split)
    elif source.kind == "table":
        units = Rows(_table(where, source))
    elif source.kind == "files":
        found = sorted(p for p in where.rglob("*") if p.suffix.lower() in PICTURES)
        # A picture without its .txt stays in, to be counted as a bad sample.
        units = Rows([(p, None) for p in found])
    else:
        found = sorted(p for p in where.glob("*/**/*") if p.suffix.lower() in PICTURES)
        folders = [p.relative_to(where).parts[0] for p in found]
        texts = _class_texts(sorted(set(folders)), where)
        units = Rows([(p, texts[folder]) for p, folder in zip(found, folders, strict=True)])
    if len(units) < max(1, streams):
        raise ClipagError(
            f"{source.kind} {source.path} has {len(units)} samples, fewer than the {streams} "
            "streams: check the path, or set streams lower."
        )
    return units


def class_names(sources: Sequence[Source]) -> list[str]:
    """Return the sorted classes of all sources: folder names, or a corpus' captions."""
    names: set[str] = set()
    for source in sources:
        units = open_source(source)
        if not isinstance(units, Rows | CorpusRows) or source.kind not in ("classes", "corpus"):
            raise ClipagError(f"tecoa needs class names, which {source.kind} do not have.")
        if isinstance(units, CorpusRows):
            names |= {row.caption for row in units.rows}
        else:
            names |= {caption for _, caption in units.rows if caption}
    return sorted(names)


def _class_texts(folders: Sequence[str], where: Path) -> dict[str, str]:
    """Return what the classes of an ImageFolder are called; ImageNet's folders are ids."""
    if not any(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        return {folder: folder.replace("_", " ").strip() for folder in folders}
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    # Its names are in the order of the ids, so all of them must be there.
    if len(folders) != len(IMAGENET_CLASSNAMES):
        raise ClipagError(
            f"{where} names its classes by WordNet ids, as {folders[0]}, and is not the whole of "
            "ImageNet: rename its folders to words."
        )
    return dict(zip(folders, IMAGENET_CLASSNAMES, strict=True))


def _caption_beside(picture: Path) -> str:
    try:
        return picture.with_suffix(".txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _table(path: Path, source: Source) -> list[tuple[Path, str | None]]:
    if not path.is_file():
        raise ClipagError(f"There is no table {path}: name a .csv, .tsv or .jsonl file.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel's begin with a mark
            if path.suffix == ".jsonl":
                rows: list[Any] = [_json(line) for line in file if line.strip()]
            else:
                rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ClipagError(
            f"{path} cannot be read as a table ({error}): save it as UTF-8, with short fields."
        ) from error
    for column in (source.image, source.caption):
        if not any(isinstance(row, dict) and row.get(column) for row in rows):
            raise ClipagError(f"{path} has no column {column!r}: set data.image and data.caption.")
    good = [row if isinstance(row, dict) else {} for row in rows]
    return [
        (path.parent / str(row.get(source.image) or ""), str(row.get(source.caption) or ""))
        for row in good
    ]


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return {}


def decode(picture: Any, side: int, crop: float, draw: np.random.Generator | None) -> Tensor:
    """Return (3, side, side) uint8 of a picture: a random square of it, or the central one.

    `crop` is the smallest share of the largest square's area that is taken at random.
    """
    if picture is None:
        raise ValueError("it has no picture")
    if isinstance(picture, bytes):
        picture = io.BytesIO(picture)
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    image.draft("RGB", (2 * side, 2 * side))  # a large JPEG is read at a fraction of its size
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    most = min(image.size)
    edge, x, y = float(most), 0.5, 0.5
    if draw is not None:
        share, x, y = draw.random(3)
        edge = most * float(crop + (1 - crop) * share) ** 0.5
    left, top = x * (image.width - edge), y * (image.height - edge)
    box = (left, top, left + edge, top + edge)
    image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _sample(
    raw: Raw, side: int, crop: float, draw: np.random.Generator | None
) -> tuple[Tensor, str]:
    _, picture, caption = raw
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("it has no caption")
    return decode(picture, side, crop, draw), caption.strip()


class Stream:
    """One endless sequence of samples, mixed from the sources by their weights.

    `state` is its position: samples given, samples skipped, and for each source the epoch,
    the unit in that epoch's order, and the samples of the unit that are done.
    """

    def __init__(self, config: Config, sources: Sequence[Units], side: int, number: int, log: Path):
        self.config, self.sources, self.side = config, sources, side
        self.number, self.log = number, log
        weights = np.array([source.weight for source in config.data])
        self.shares = weights / weights.sum()
        self.state = [0, 0] + [0, 0, 0] * len(sources)
        self._open: dict[int, Iterator[Raw]] = {}
        self._orders: dict[int, tuple[int, Any]] = {}

    def next(self) -> tuple[Tensor, str]:
        """Return the next sample: (3, side, side) uint8, and its caption."""
        draw = np.random.default_rng([self.config.seed, self.number, self.state[0]])
        source = int(draw.choice(len(self.shares), p=self.shares))
        failed_epochs, before = 0, self.state[2 + 3 * source]
        while True:
            raw = self._advance(source)
            if raw is None:
                failed_epochs += self.state[2 + 3 * source] != before
                before = self.state[2 + 3 * source]
                if failed_epochs > 1:
                    raise ClipagError(
                        f"Nothing in {self.config.data[source].path} can be read: "
                        f"{self.log} says why."
                    )
                continue
            try:
                found = _sample(raw, self.side, self.config.crop, draw)
            except BROKEN as error:
                self._skip(raw[0], error)
                continue
            self.state[0] += 1
            return found

    def _advance(self, source: int) -> Raw | None:
        """Return the next sample as it is in a source, or None where a unit ended."""
        epoch, unit, done = position = self.state[2 + 3 * source : 5 + 3 * source]
        mine = self._order(source, epoch)
        if source not in self._open:
            self._open[source] = self.sources[source].read(int(mine[unit]))
            for _ in range(done):  # resumed in the middle of a shard
                if self._read(source) is None:
                    break
        raw = self._read(source)
        if raw is not None:
            position[2] += 1
        else:
            del self._open[source]
            position[1:] = unit + 1, 0
            if position[1] == len(mine):
                position[:2] = epoch + 1, 0
        self.state[2 + 3 * source : 5 + 3 * source] = position
        return raw

    def _read(self, source: int) -> Raw | None:
        try:
            return next(self._open[source], None)
        except BROKEN as error:
            epoch, unit, _ = self.state[2 + 3 * source : 5 + 3 * source]
            self._skip(f"unit {self._order(source, epoch)[unit]}", error)
            return None

    def _order(self, source: int, epoch: int) -> Any:
        """Return this stream's units of a source in an epoch's order."""
        known, order = self._orders.get(source, (None, None))
        if known != epoch:
            shuffle = np.random.default_rng([self.config.seed, source, epoch, 1])
            every = shuffle.permutation(len(self.sources[source]))
            order = every[self.number :: self.config.streams].copy()
            self._orders[source] = epoch, order
        return order

    def _skip(self, name: str, error: Exception) -> None:
        self.state[1] += 1
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{name}\t{reason}\n")


Block = tuple[Tensor, list[list[str]], dict[int, list[int]]]


class _Blocks(IterableDataset[Block | ClipagError]):
    """What a decoding worker does: micro-batches of the streams that are its own."""

    def __init__(self, streams: list[Stream], rows: int):
        self.streams, self.rows = streams, rows

    def __iter__(self) -> Iterator[Block | ClipagError]:
        worker = get_worker_info()
        share = np.array_split(np.arange(len(self.streams)), worker.num_workers if worker else 1)
        mine = [self.streams[i] for i in share[worker.id if worker else 0]]
        while True:
            try:
                drawn = [[stream.next() for stream in mine] for _ in range(self.rows)]
            except ClipagError as error:  # raised here, a worker's would come with its traceback
                yield error
                return
            images = torch.stack([torch.stack([image for image, _ in row]) for row in drawn])
            captions = [[caption for _, caption in row] for row in drawn]
            yield images, captions, {stream.number: [*stream.state] for stream in mine}


def _outlast(_: int) -> None:
    """Let a decoding worker live through a signal to all: its process finishes an update first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


class Data:
    """The training data of one process, as micro-batches without end.

    Args:
        config: the run.
        side: of the images.
        rank, processes: which part of every batch is this process' own.
        folder: where `skipped.tsv` goes.
    """

    def __init__(self, config: Config, side: int, rank: int, processes: int, folder: Path):
        sources = [open_source(source, config.streams) for source in config.data]
        numbers = range(rank, config.streams, processes)
        log = folder / "skipped.tsv"
        self._streams = [Stream(config, sources, side, n, log) for n in numbers]
        self._rows = config.micro_batch // len(self._streams)
        self._workers = min(config.workers, len(self._streams))
        self._numbers = torch.tensor(numbers)
        self._config = config
        self._blocks: Iterator[Block | ClipagError] | None = None
        # Where the samples that were taken end; workers have read further already.
        self.states = {stream.number: [*stream.state] for stream in self._streams}

    def restore(self, states: dict[int, list[int]]) -> None:
        """Go on from the positions of all streams, as gathered from `states`."""
        for stream in self._streams:
            if len(states[stream.number]) != len(stream.state):
                raise ClipagError("The checkpoint is of other data: start in another --out.")
            stream.state = [*states[stream.number]]
            self.states[stream.number] = [*stream.state]

    def take(self) -> tuple[Tensor, list[str]]:
        """Return the next micro-batch: (M, 3, side, side) uint8, and M captions."""
        if self._blocks is None:
            blocks = _Blocks(self._streams, self._rows)
            loader = DataLoader(
                blocks, batch_size=None, num_workers=self._workers, worker_init_fn=_outlast
            )
            self._blocks = iter(loader)
        parts: list[Block] = []
        for _ in range(max(1, self._workers)):
            block = next(self._blocks)
            if isinstance(block, ClipagError):
                raise block
            parts.append(block)
            self.states |= block[2]
        images = torch.cat([images for images, _, _ in parts], dim=1).flatten(0, 1)
        rows = zip(*(captions for _, captions, _ in parts), strict=True)
        return images, [caption for row in rows for block in row for caption in block]

    def indices(self, number: int) -> list[int]:
        """Return where the samples of a step's micro-batch `number` stand in the whole batch."""
        first = torch.arange(number * self._rows, (number + 1) * self._rows) * self._config.streams
        places: list[int] = (first[:, None] + self._numbers).flatten().tolist()
        return places


def held_out(source: Source, side: int, count: int) -> tuple[Tensor, list[str]]:
    """Return the first `count` samples, (N, 3, side, side) uint8, of a source's shuffled units.

    A unit is a row, or a shard, whose samples come together.
    """
    found = [*itertools.islice(_shuffled(open_source(source), side), count)]
    if not found:
        raise ClipagError(f"Nothing in the validation data {source.path} can be read.")
    images, captions = zip(*found, strict=True)
    return torch.stack(images), [*captions]


def _shuffled(units: Units, side: int) -> Iterator[tuple[Tensor, str]]:
    for unit in np.random.default_rng(0).permutation(len(units)):
        with contextlib.suppress(*BROKEN):  # a shard may break off
            for raw in units.read(int(unit)):
                with contextlib.suppress(*BROKEN):
                    yield _sample(raw, side, 1.0, None)
