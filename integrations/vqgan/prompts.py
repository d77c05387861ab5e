"""The prompts of VQGAN+CLIP: `text:weight:stop | text … ^ text …`.

`|` separates prompts that are drawn at once, `^` separates scenes that follow one another. A weight
below 0 pushes the picture away from its text. `stop` is the spherical distance at which a prompt
stops pulling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clipag_plugins.errors import ClipagError

GRAMMAR = "write text:weight:stop, with | between prompts and ^ between scenes"


@dataclass(frozen=True)
class Prompt:
    """A text, or the path of a picture, with its weight and the distance to stop at."""

    text: str
    weight: float = 1.0
    stop: float = -math.inf


def parse_scenes(text: str) -> list[list[Prompt]]:
    """Read `… | … ^ …` as one list of prompts for each scene.

    Raises:
        ClipagError: a scene or a prompt is empty, or a weight or stop cannot be used.
    """
    return [parse_prompts(scene) for scene in text.split("^")]


def parse_prompts(text: str) -> list[Prompt]:
    """Read `… | …` as a list of prompts.

    Raises:
        ClipagError: as for `parse_scenes`.
    """
    return [_parse(part, text) for part in text.split("|")]


def with_prefix(scenes: Sequence[Sequence[Prompt]], prefix: str) -> list[list[Prompt]]:
    """Return the scenes with a prefix before every text."""
    return [
        [replace(prompt, text=f"{prefix} {prompt.text}".strip()) for prompt in scene]
        for scene in scenes
    ]


def _parse(part: str, whole: str) -> Prompt:
    text, *numbers = part.rsplit(":", 2)
    if len(numbers) == 2 and not _is_number(numbers[0]):
        # The text itself has a colon, and one number follows it.
        text, numbers = f"{text}:{numbers[0]}", numbers[1:]
    if not text.strip():
        raise ClipagError(f"There is an empty prompt in {whole.strip()!r}: {GRAMMAR}.")
    if not all(map(_is_number, numbers)):
        raise ClipagError(
            f"In the prompt {part.strip()!r}, {numbers[-1].strip()!r} is not a number: "
            f"{GRAMMAR}; a text with a colon needs a weight, as in 'Alien: a poster:1'."
        )
    prompt = Prompt(text.strip(), *map(float, numbers))
    if not math.isfinite(prompt.weight) or prompt.weight == 0 or math.isnan(prompt.stop):
        raise ClipagError(
            f"The prompt {part.strip()!r} has a weight or stop that cannot be used: {GRAMMAR}."
        )
    return prompt


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
