"""Draw many prompts into a folder, and resume where an interrupted run stopped."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ..ascent import Ascent
from ..errors import ClipagError
from ..files import write_beside
from ..pictures import save_png, to_pil
from .sharing import rank_and_world_size, wait_for_all


def picture_path(folder: Path, number: int) -> Path:
    """Return where `draw_missing` writes the picture of the prompt with this number."""
    return folder / f"{number:05}.png"


def draw_missing(
    draw: Callable[[list[str]], Ascent],
    prompts: Sequence[str],
    folder: Path,
    metadata: Mapping[str, object],
    batch: int,
) -> None:
    """Draw the prompts that have no picture in a folder yet, as 00000.png, 00001.png, …

    An interrupted call leaves the finished pictures; the next call draws the others. Under torchrun
    each process draws its share and waits for the last process.

    Args:
        draw: draws a batch of prompts.
        prompts: all prompts.
        folder: where the pictures go; it is made if it is missing. Its settings.json records
            `metadata` and the prompts.
        metadata: what the pictures have in common, such as model, seed and steps. Each picture
            carries it together with its prompt.
        batch: prompts that are drawn at once.

    Raises:
        ClipagError: the folder has pictures with other metadata or prompts.
        KeyboardInterrupt: Ctrl-C ended an ascent.
    """
    rank, world_size = rank_and_world_size()
    settings = json.dumps({**metadata, "prompts": list(prompts)}, indent=1, default=str)
    settings_file = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if settings_file.exists() and settings_file.read_text(encoding="utf-8") != settings:
        raise ClipagError(
            f"The pictures in {folder} were drawn with other settings or prompts: name another "
            "folder, or remove it."
        )
    with write_beside(settings_file) as temporary:
        temporary.write_text(settings, encoding="utf-8")
    share = range(rank, len(prompts), world_size)
    missing = [i for i in share if not picture_path(folder, i).exists()]
    for first in tqdm(
        range(0, len(missing), batch), desc=folder.name, unit="batch", disable=rank > 0
    ):
        numbers = missing[first : first + batch]
        ascent = draw([prompts[i] for i in numbers])
        if ascent.interrupted:
            raise KeyboardInterrupt
        for i, image in zip(numbers, ascent.images, strict=True):
            chunks = {"prompt": prompts[i], **metadata, "Software": "clipag-plugins"}
            save_png(to_pil(image), picture_path(folder, i), chunks)
    wait_for_all()
