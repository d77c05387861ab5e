"""Folders of pictures, and files of prompts."""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..errors import ClipagError
from ..files import slug
from ..pictures import read_picture, read_square

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
BATCH = 32
BAR_FROM = 1000  # pictures of a folder from which on reading them shows a progress bar


@dataclass(frozen=True)
class Picture:
    """A picture to judge.

    Attributes:
        path: its file.
        prompt: the index of its prompt.
        metadata: the text that its file carries, such as the model that guided.
    """

    path: Path
    prompt: int
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FolderContents:
    """The picture files of a folder, sorted by name, with numbers in names sorted by value.

    Attributes:
        metadata: the text that each file carries; None for a file that cannot be read.
        problems: a sentence for each file that cannot be read, and one with their number.
    """

    metadata: Mapping[Path, Mapping[str, str] | None]
    problems: Sequence[str]

    @property
    def readable(self) -> list[Path]:
        """The files that can be read."""
        return [path for path, metadata in self.metadata.items() if metadata is not None]


def read_prompts(path: Path, count: int | None = None, seed: int = 0) -> list[str]:
    """Read prompts: one on each line, or the captions of a COCO annotations file (.json).

    Args:
        path: the file.
        count: draw this many of the prompts at random; None for all in their order.
        seed: of the random choice.

    Raises:
        ClipagError: the file cannot be read, has no prompt, or has fewer than `count`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        is_coco = path.suffix == ".json"
        lines = (
            [annotation["caption"] for annotation in json.loads(text)["annotations"]]
            if is_coco
            else text.splitlines()
        )
        prompts = [" ".join(line.split()) for line in lines if line.strip()]
    except (OSError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ClipagError(
            f"{path} is no text file with a prompt on each line, nor COCO's captions as .json."
        ) from error
    if not prompts:
        raise ClipagError(f"{path} has no prompt: write one on each line.")
    if count is None:
        return prompts
    if not 1 <= count <= len(prompts):
        raise ClipagError(f"`count` is {count}, but {path} has {len(prompts)} prompts.")
    return random.Random(seed).sample(prompts, count)


def read_folder(folder: Path) -> FolderContents:
    """Try to read every picture of a folder.

    Raises:
        ClipagError: the folder has no picture, or none that can be read.
    """
    if not folder.is_dir():
        raise ClipagError(f"There is no folder {folder}: name one with pictures.")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ClipagError(f"There is no picture in {folder}.")
    metadata: dict[Path, dict[str, str] | None] = {}
    problems = []
    bar = tqdm(sorted(paths, key=_by_value), desc="reading", disable=len(paths) < BAR_FROM)
    for path in bar:
        try:
            read_picture(path)
        except ClipagError as error:
            problems.append(f"Skipped: {error}")
            metadata[path] = None
            continue
        with Image.open(path) as file:
            metadata[path] = {str(k): v for k, v in file.info.items() if isinstance(v, str)}
    if len(problems) == len(paths):
        raise ClipagError(f"None of the {len(paths)} pictures in {folder} can be read.")
    if problems:
        problems.append(f"{folder}: {len(problems)} of {len(paths)} pictures were skipped.")
    return FolderContents(metadata, problems)


def find_pictures(folder: Path, prompts: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Return the pictures of a folder with their prompts, and the problems of reading them.

    A picture of this package carries its prompt; others may be named after theirs. If no picture
    tells its prompt, they are taken to be sorted in the order of the prompts; an unreadable picture
    then takes its prompt too.

    Raises:
        ClipagError: there is no picture, or the prompt of a picture cannot be determined.
    """
    contents = read_folder(folder)
    # Of equal prompts, the first.
    by_text = {prompt: i for i, prompt in reversed(list(enumerate(prompts)))}
    by_slug = {slug(prompt): i for prompt, i in by_text.items()}
    indices = [
        _prompt_index(path, metadata or {}, by_text, by_slug)
        for path, metadata in contents.metadata.items()
    ]
    if all(index is None for index in indices):
        if len(prompts) < len(indices):
            raise ClipagError(
                f"There are {len(prompts)} prompts for the {len(indices)} pictures of {folder}, "
                "none of which tells its prompt: give a line for each, in the order of their names."
            )
        indices = list(range(len(indices)))
    pictures = []
    for (path, metadata), index in zip(contents.metadata.items(), indices, strict=True):
        if metadata is None:
            continue
        if index is None:
            raise ClipagError(f"{path} shows none of the prompts, while others in {folder} do.")
        pictures.append(Picture(path, index, metadata))
    return pictures, list(contents.problems)


def _prompt_index(
    path: Path,
    metadata: Mapping[str, str],
    by_text: Mapping[str, int],
    by_slug: Mapping[str, int],
) -> int | None:
    """Return the index of the prompt that a picture carries or is named after."""
    without_seed = re.sub(r"-\d+$", "", path.stem)
    for index in (
        by_text.get(metadata.get("prompt", "")),
        by_text.get(path.stem),
        by_slug.get(slug(without_seed)),
    ):
        if index is not None:
            return index
    return None


def _by_value(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts 9.png before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def batches(paths: Sequence[Path], side: int, size: int = BATCH) -> Iterator[Tensor]:
    """Yield pictures as batches of images (≤ size, 3, side, side) in [0, 1]."""
    for first in range(0, len(paths), size):
        yield torch.stack([read_square(path, side) for path in paths[first : first + size]])
