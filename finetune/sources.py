"""Sources of image–caption pairs: shards, folders, tables, and how a picture is decoded.

A source is divided into units that are visited in random order: shards of many samples, or
single pictures.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from clipag_plugins.errors import ClipagError, library
from clipag_plugins.finetune.augment import posed
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.settings import Source

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
CAPTION_KEYS = ("caption", "text", "title")  # of the JSON in a shard
# What broken files and broken table rows raise, from PIL, tarfile, json and the system.
BROKEN = (
    OSError, ValueError, KeyError, TypeError, SyntaxError, EOFError, Image.DecompressionBombError,
)  # fmt: skip


class RawSample(NamedTuple):
    """A sample before it is decoded: `picture` is a path, bytes, a PIL image or None."""

    name: str
    picture: Any
    caption: Any


class Units(Protocol):
    """A source, as units that are visited in random order."""

    def __len__(self) -> int:
        """Return the number of units."""

    def read(self, unit: int) -> Iterator[RawSample]:
        """Yield the samples of a unit."""

    def contents(self) -> object:
        """Return what the source lists (not its pixels); its `repr` identifies the source."""


class Pairs:
    """Pictures with captions, one pair a unit. A caption of None is in the .txt beside."""

    def __init__(self, pairs: Sequence[tuple[Path, str | None]]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, unit: int) -> Iterator[RawSample]:
        """Yield the one pair of a unit."""
        path, caption = self.pairs[unit]
        yield RawSample(str(path), path, _caption_beside(path) if caption is None else caption)

    def contents(self) -> object:
        """Return file names and captions, without the folder, which may have moved."""
        return [(path.name, caption) for path, caption in self.pairs]


class CorpusSplit:
    """One split of the corpus that the embedded models are made from."""

    def __init__(self, folder: Path, split: str):
        if not (folder / "captions.json").is_file():
            raise ClipagError(
                f"{folder} holds no corpus: make it with "
                "python -m clipag_plugins.finetune.embedded.corpus, or name other data in a copy "
                "of the config."
            )
        self._pixels, pictures = corpus.load(folder)
        self._file = folder / "pictures.npy"
        self.pictures = [picture for picture in pictures if picture.split == split]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, unit: int) -> Iterator[RawSample]:
        """Yield the one picture of a unit."""
        picture, shape = self.pictures[unit], self._pixels.shape[1:]
        # Read and not mapped: mapped pages stay in this process's memory once they are touched.
        size = math.prod(shape)
        offset = self._pixels.offset + picture.index * size
        pixels = np.fromfile(self._file, np.uint8, size, offset=offset).reshape(shape)
        name = f"{picture.source}/{picture.name}"
        yield RawSample(name, Image.fromarray(pixels), picture.caption)

    def contents(self) -> object:
        """Return every picture's number, source and caption."""
        return self.pictures


class Shards:
    """Webdataset shards. Where there are fewer shards than streams, streams share a shard."""

    def __init__(self, path: str | list[str], streams: int):
        expand_urls = library("webdataset.shardlists", "finetune").expand_urls
        patterns = [path] if isinstance(path, str) else path
        paths = [os.path.expanduser(each) for each in patterns]  # noqa: PTH111 (a URL is no Path)
        self.urls: list[str] = [url for pattern in paths for url in expand_urls(pattern)]
        if len(paths) == 1 and Path(paths[0]).is_dir():
            self.urls = sorted(map(str, Path(paths[0]).glob("*.tar")))
        self.parts = -(-streams // max(1, len(self.urls)))

    def __len__(self) -> int:
        return len(self.urls) * self.parts

    def read(self, unit: int) -> Iterator[RawSample]:
        """Yield the samples of a shard, or every `parts`-th of them where streams share it."""
        from webdataset import tarfile_samples

        url, part = self.urls[unit // self.parts], unit % self.parts
        broken: list[Exception] = []

        def note_error(error: Exception) -> bool:
            broken.append(error)
            return True

        for number, sample in enumerate(tarfile_samples([{"url": url}], handler=note_error)):
            if number % self.parts == part:
                yield RawSample(f"{url}/{sample.get('__key__')}", *_members(sample))
        if broken:
            raise OSError(f"the shard breaks off: {broken[0]}")

    def contents(self) -> object:
        """Return the shards' addresses."""
        return self.urls


def _members(sample: dict[str, Any]) -> tuple[Any, Any]:
    """Return picture and caption of a webdataset sample, in any of img2dataset's forms."""
    picture = next((sample[s[1:]] for s in PICTURE_SUFFIXES if s[1:] in sample), None)
    if "txt" in sample:
        return picture, sample["txt"].decode("utf-8", "replace")
    if "json" not in sample:
        return picture, None
    try:
        metadata = json.loads(sample["json"])
        return picture, next((metadata[key] for key in CAPTION_KEYS if metadata.get(key)), None)
    except (ValueError, AttributeError, RecursionError):
        return picture, None


def open_source(source: Source, streams: int = 1) -> Units:
    """List the units of a source.

    Raises:
        ClipagError: there is nothing at its path, or fewer units than streams.
    """
    units: Units
    folder = Path(source.path if isinstance(source.path, str) else "").expanduser()
    if source.kind == "shards":
        units = Shards(source.path, streams)
    elif source.kind == "corpus":
        units = CorpusSplit(folder, source.split)
    elif source.kind == "table":
        units = Pairs(_table(folder, source))
    elif source.kind == "files":
        # A picture without its .txt stays in, to be counted as a bad sample.
        units = Pairs([(path, None) for path in _pictures(folder, "**/*")])
    else:
        units = Pairs(_classes(folder))
    if len(units) < max(1, streams):
        raise ClipagError(
            f"{source.kind} {source.path} has {len(units)} samples, fewer than the {streams} "
            "streams: check the path, or set streams lower."
        )
    return units


def fingerprint(sources: Sequence[Units]) -> str:
    """Return a digest of what the sources list, which changes where the data does."""
    digest = hashlib.sha256()
    for units in sources:
        digest.update(repr(units.contents()).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def all_captions(sources: Sequence[Source]) -> list[str]:
    """Return the sorted captions of all sources: of folders of classes, the classes' names.

    Raises:
        ClipagError: the captions of a source are only known when its samples are read.
    """
    captions: set[str] = set()
    for source in sources:
        units = open_source(source)
        if isinstance(units, CorpusSplit):
            captions |= {picture.caption for picture in units.pictures}
        elif isinstance(units, Pairs) and source.kind != "files":
            captions |= {caption.strip() for _, caption in units.pairs if caption}
        else:
            raise ClipagError(
                f"The captions of {source.kind} are not known beforehand: tecoa and "
                'candidates = "all" need classes, a table or a corpus.'
            )
    return sorted(captions)


def _pictures(folder: Path, pattern: str) -> list[Path]:
    return sorted(p for p in folder.glob(pattern) if p.suffix.lower() in PICTURE_SUFFIXES)


def _classes(folder: Path) -> list[tuple[Path, str | None]]:
    """Return the pictures of an ImageFolder, each with its class as caption."""
    pictures = _pictures(folder, "*/**/*")
    folders = [picture.relative_to(folder).parts[0] for picture in pictures]
    names = _class_names(sorted(set(folders)), folder)
    return [(path, names[name]) for path, name in zip(pictures, folders, strict=True)]


def _class_names(folders: Sequence[str], root: Path) -> dict[str, str]:
    """Return the classes' names by folder; ImageNet's folders are WordNet ids."""
    if not any(re.fullmatch(r"n\d{8}", folder) for folder in folders):
        return {folder: folder.replace("_", " ").strip() for folder in folders}
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    # open_clip lists the names in the order of the ids, so all ids must be there.
    if len(folders) != len(IMAGENET_CLASSNAMES):
        raise ClipagError(
            f"{root} names its classes by WordNet ids, as {folders[0]}, and is not the whole of "
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
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel begins with a BOM
            if path.suffix == ".jsonl":
                lines: list[Any] = [_json(line) for line in file if line.strip()]
            else:
                lines = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ClipagError(
            f"{path} cannot be read as a table ({error}): save it as UTF-8, with short fields."
        ) from error
    for column in (source.image, source.caption):
        if not any(isinstance(line, dict) and line.get(column) for line in lines):
            raise ClipagError(f"{path} has no column {column!r}: set data.image and data.caption.")
    cells = [line if isinstance(line, dict) else {} for line in lines]
    return [
        (path.parent / str(line.get(source.image) or ""), str(line.get(source.caption) or ""))
        for line in cells
    ]


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return {}


def decode(
    picture: Any, side: int, crop: float, draw: np.random.Generator | None, augment: str = "crop"
) -> Tensor:
    """Return a picture as (3, side, side) uint8.

    Args:
        picture: a path, bytes or a PIL image.
        side: of the result, in pixels.
        crop: smallest share of the largest square's area that a random crop takes.
        draw: source of randomness; None takes the whole central square, as it is.
        augment: "crop" or "pose", as in `Source`.

    Raises:
        ValueError: there is no picture. Broken pictures raise any of `BROKEN`.
    """
    if picture is None:
        raise ValueError("it has no picture")
    if isinstance(picture, bytes):
        picture = io.BytesIO(picture)
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    image.draft("RGB", (2 * side, 2 * side))  # a large JPEG is read at a fraction of its size
    if draw is not None and augment == "pose":
        return _decode_posed(image, side, draw)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    share, x, y = (1.0, 0.5, 0.5) if draw is None else draw.random(3)
    if draw is not None:
        share = crop + (1 - crop) * share
    image = image.resize((side, side), Image.Resampling.BICUBIC, _square(image, share, x, y))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _square(
    image: Image.Image, share: float, x: float, y: float
) -> tuple[float, float, float, float]:
    """Return a box with a share of the largest square's area; x, y in [0, 1] say where it is."""
    edge = min(image.size) * float(share) ** 0.5
    left, top = x * (image.width - edge), y * (image.height - edge)
    return left, top, left + edge, top + edge


def _decode_posed(image: Image.Image, side: int, draw: np.random.Generator) -> Tensor:
    premultiplied = image.convert("RGBA").convert("RGBa")
    box = _square(premultiplied, 1.0, 0.5, 0.5)
    small = premultiplied.resize((side, side), Image.Resampling.BILINEAR, box)
    rgba = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255
    generator = torch.Generator().manual_seed(int(draw.integers(2**63)))
    return (posed(rgba, generator)[0] * 255).round().to(torch.uint8)


def sample(
    raw: RawSample, side: int, crop: float, draw: np.random.Generator | None, augment: str = "crop"
) -> tuple[Tensor, str]:
    """Decode a sample: (3, side, side) uint8, and its caption.

    Raises:
        ValueError: it has no picture or no caption. Broken ones raise any of `BROKEN`.
    """
    if not isinstance(raw.caption, str) or not raw.caption.strip():
        raise ValueError("it has no caption")
    return decode(raw.picture, side, crop, draw, augment), raw.caption.strip()


def batches(units: Units, side: int, least: int) -> Iterator[tuple[Tensor, list[str]]]:
    """Yield images (B, 3, side, side) uint8 and captions of all samples that can be read.

    A progress bar counts the units. A batch ends with the unit that gives it `least` samples.
    """
    images: list[Tensor] = []
    captions: list[str] = []
    for unit in tqdm(range(len(units)), "encoding", unit="unit"):
        try:
            for raw in units.read(unit):
                image, caption = sample(raw, side, 1.0, None)
                images.append(image)
                captions.append(caption)
        except BROKEN:
            pass  # the rest of the unit is lost
        if images and (len(images) >= least or unit == len(units) - 1):
            yield torch.stack(images), captions
            images, captions = [], []


def held_out(source: Source, side: int, count: int) -> tuple[Tensor, list[str]]:
    """Return the first `count` samples of a source's shuffled units.

    Returns:
        Images (N, 3, side, side) uint8, and their captions. Samples of one shard come together.
    """
    samples = [*itertools.islice(_shuffled(open_source(source), side), count)]
    if not samples:
        raise ClipagError(f"Nothing in the validation data {source.path} can be read.")
    images, captions = zip(*samples, strict=True)
    return torch.stack(images), [*captions]


def _shuffled(units: Units, side: int) -> Iterator[tuple[Tensor, str]]:
    for unit in np.random.default_rng(0).permutation(len(units)):
        with contextlib.suppress(*BROKEN):  # a shard may break off
            for raw in units.read(int(unit)):
                with contextlib.suppress(*BROKEN):
                    yield sample(raw, side, 1.0, None)
