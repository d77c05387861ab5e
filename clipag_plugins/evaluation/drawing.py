"""Draw many prompts into a folder, and go on where that was stopped."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ..ascent import Ascent
from ..errors import ClipagError
from ..files import write_beside
from ..pictures import save_png, to_pil
from .sharing import shard, wait_for_all


def draw_missing(
    draw: Callable[[list[str]], Ascent],
    prompts: Sequence[str],
    folder: Path,
    facts: Mapping[str, object],
    batch: int,
) -> None:
    """Draw the prompts that have no picture in a folder yet, as 00000.png and so on.

    What was drawn stays when this is stopped, and is not drawn again. Under torchrun each
    process draws its share, and all wait for the last.

    Args:
        draw: makes the pictures of a batch of prompts.
        prompts: all of them.
        folder: made if need be; its settings.json says what `facts` its pictures have in common.
        facts: such as model, seed and steps; each picture carries them, and its prompt.
        batch: prompts that are drawn at once.

    Raises:
        ClipagError: the folder has pictures that were drawn with other facts or prompts.
        KeyboardInterrupt: an ascent was ended by Ctrl-C.
    """
    rank, world = shard()
    settings = json.dumps({**facts, "prompts": list(prompts)}, indent=1, default=str)
    lock = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if lock.exists() and lock.read_text(encoding="utf-8") != settings:
        raise ClipagError(
            f"The pictures in {folder} were drawn with other settings or prompts: name another "
            "folder, or remove it."
        )
    with write_beside(lock) as temporary:
        temporary.write_text(settings, encoding="utf-8")
    mine = [i for i in range(len(prompts)) if i % world == rank]
    missing = [i for i in mine if not (folder / f"{i:05}.png").exists()]
    for first in tqdm(
        range(0, len(missing), batch), desc=folder.name, unit="batch", disable=rank > 0
    ):
        numbers = missing[first : first + batch]
        ascent = draw([prompts[i] for i in numbers])
        if ascent.interrupted:
            raise KeyboardInterrupt
        for i, image in zip(numbers, ascent.images, strict=True):
            own = {"prompt": prompts[i], **facts, "Software": "clipag-plugins"}
            save_png(to_pil(image), folder / f"{i:05}.png", own)
    wait_for_all()
