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

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
BATCH = 32


@dataclass(frozen=True)
class Picture:
    """A picture to judge, the number of its prompt, and the facts that its file carries."""

    path: Path
    prompt: int
    facts: Mapping[str, str] = field(default_factory=dict)


def read_prompts(path: Path, count: int | None = None, seed: int = 0) -> list[str]:
    """Read prompts: one a line, or the captions of a COCO annotations file (.json).

    With a `count`, only so many of them, drawn at random by the seed.

    Raises:
        ClipagError: there is no such file, no prompt in it, or fewer than `count`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        is_coco = path.suffix == ".json"
        lines = (
            [annotation["caption"] for annotation in json.loads(text)["annotations"]]
            if is_coco
            else text.splitlines()
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClipagError(
            f"{path} is no text file with a prompt on each line, nor COCO's captions as .json."
        ) from error
    prompts = [" ".join(line.split()) for line in lines if line.strip()]
    if not prompts:
        raise ClipagError(f"{path} has no prompt: write one on each line.")
    if count is None:
        return prompts
    if not 1 <= count <= len(prompts):
        raise ClipagError(f"count is {count}, but {path} has {len(prompts)} prompts.")
    return random.Random(seed).sample(prompts, count)


def readable(folder: Path) -> tuple[dict[Path, dict[str, str] | None], list[str]]:
    """Return a folder's pictures with the facts that each file carries, and what is amiss.

    They are sorted by name, numbers in them by their value. A picture that cannot be read has
    None for its facts, and there is a sentence for it.

    Raises:
        ClipagError: there is no picture, or none that can be read.
    """
    if not folder.is_dir():
        raise ClipagError(f"There is no folder {folder}: name one with pictures.")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    if not paths:
        raise ClipagError(f"There is no picture in {folder}.")
    found: dict[Path, dict[str, str] | None] = {}
    skipped = []
    bar = tqdm(sorted(paths, key=_natural), desc="reading", disable=len(paths) < 1000)
    for path in bar:
        try:
            read_picture(path)
        except ClipagError as error:
            skipped.append(f"Skipped: {error}")
            found[path] = None
            continue
        with Image.open(path) as file:
            info = {str(k): v for k, v in file.info.items()}
        found[path] = {k: v for k, v in info.items() if isinstance(v, str)}
    if len(skipped) == len(paths):
        raise ClipagError(f"None of the {len(paths)} pictures in {folder} can be read.")
    if skipped:
        skipped.append(f"{folder}: {len(skipped)} of {len(paths)} pictures were skipped.")
    return found, skipped


def find_pictures(folder: Path, prompts: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Return the pictures of a folder with their prompts, and what `readable` finds amiss.

    A picture of this package carries its prompt; others are called after theirs. Where none
    says its own, they come in the order of their prompts, unreadable ones included.

    Raises:
        ClipagError: there is no picture, or it cannot be told which prompt is whose.
    """
    found, skipped = readable(folder)
    number = {prompt: i for i, prompt in reversed(list(enumerate(prompts)))}
    slugs = {slug(prompt): i for prompt, i in number.items()}

    def of(path: Path, facts: Mapping[str, str]) -> int | None:
        without_seed = re.sub(r"-\d+$", "", path.stem)
        for known, name in (
            (number, facts.get("prompt", "")),
            (number, path.stem),
            (slugs, slug(without_seed)),
        ):
            if name in known:
                return known[name]
        return None

    numbers = [of(path, facts or {}) for path, facts in found.items()]
    if all(mine is None for mine in numbers):
        if len(prompts) < len(found):
            raise ClipagError(
                f"There are {len(prompts)} prompts for the {len(found)} pictures of {folder}, none "
                "of which says its own: give a line for each, in the order of their names."
            )
        numbers = list(range(len(found)))
    pictures = []
    for (path, facts), mine in zip(found.items(), numbers, strict=True):
        if facts is None:
            continue
        if mine is None:
            raise ClipagError(f"{path} shows none of the prompts, while others in {folder} do.")
        pictures.append(Picture(path, mine, facts))
    return pictures, skipped


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def batches(paths: Sequence[Path], side: int, size: int = BATCH) -> Iterator[Tensor]:
    """Yield pictures as images (≤ size, 3, side, side) in [0, 1]."""
    for first in range(0, len(paths), size):
        yield torch.stack([read_square(path, side) for path in paths[first : first + size]])
