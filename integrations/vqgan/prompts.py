"""The prompts of VQGAN+CLIP: `text:weight:stop | text … ^ text …`.

`|` separates prompts that are drawn at once, `^` separates scenes that follow one another. A weight
below 0 pushes the picture away from its text. `stop` is the spherical distance at which a prompt
stops pulling.

Texts and paths have colons, too. What follows the last colons and is no number belongs to the text,
and so does a time of day ("a clock that shows 12:30"). A colon at the end makes all of it text. The
path of a picture is the shortest that exists. `ambiguities` says where another reading is possible.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clipag_plugins.errors import ClipagError

GRAMMAR = "write text:weight:stop, with | between prompts and ^ between scenes"
# A time of day at the end. After another colon, the numbers are a weight and a stop.
TIME = re.compile(r"(?<![\d:.])(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?$")


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
    return [_prompt(*_split_text(part), part, text) for part in text.split("|")]


def parse_pictures(text: str) -> list[Prompt]:
    """Read `… | …` as a list of prompts whose texts are paths of pictures.

    Raises:
        ClipagError: as for `parse_scenes`.
    """
    return [_prompt(*_split_path(part), part, text) for part in text.split("|")]


def ambiguities(scenes: str, pictures: str = "") -> list[str]:
    """Return a sentence for each prompt with another possible reading that says which was taken.

    Args:
        scenes: what `parse_scenes` reads.
        pictures: what `parse_pictures` reads.
    """
    sentences = []
    for part in re.split(r"[|^]", scenes):
        sentence = _ambiguity_of_text(part.strip())
        if sentence:
            sentences.append(f"In the prompt {part.strip()!r}, {sentence}.")
    for part in pictures.split("|"):
        paths = [path.strip() for path, _ in _readings(part) if _is_file(path)]
        if len(paths) > 1:
            sentences.append(f"Of the pictures {' and '.join(paths)}, the first is taken.")
    return sentences


def with_prefix(scenes: Sequence[Sequence[Prompt]], prefix: str) -> list[list[Prompt]]:
    """Return the scenes with a prefix before every text."""
    return [
        [replace(prompt, text=f"{prefix} {prompt.text}".strip()) for prompt in scene]
        for scene in scenes
    ]


def _readings(part: str) -> list[tuple[str, list[str]]]:
    """Return the texts, and the numbers after them, that a prompt may be read as; longest last."""
    readings: list[tuple[str, list[str]]] = [(part, [])]
    fields = part.rsplit(":", 2)
    if len(fields) > 1 and _is_weight(fields[-1]):
        readings.insert(0, (part.rpartition(":")[0], fields[-1:]))
    if len(fields) > 2 and _is_weight(fields[1]) and _is_stop(fields[2]):
        readings.insert(0, (fields[0], fields[1:]))
    return readings


def _split_text(part: str) -> tuple[str, list[str]]:
    """Split a prompt into its text and the numbers after it."""
    part = part.strip()
    if part.endswith(":"):
        return part[:-1], []
    for text, numbers in _readings(part):
        # The first number is no weight if it is the end of a time.
        if not numbers or not TIME.search(f"{text}:{numbers[0]}"):
            break
    return text, numbers


def _split_path(part: str) -> tuple[str, list[str]]:
    """Split the prompt of a picture into its path and the numbers after it."""
    readings = _readings(part)
    return next((reading for reading in readings if _is_file(reading[0])), readings[0])


def _prompt(text: str, numbers: Sequence[str], part: str, whole: str) -> Prompt:
    """Return the prompt; `part` and `whole` are what it was read from, for errors."""
    if not text.strip():
        raise ClipagError(f"There is an empty prompt in {whole.strip()!r}: {GRAMMAR}.")
    prompt = Prompt(text.strip(), *map(float, numbers))
    if prompt.weight == 0:
        raise ClipagError(f"The prompt {part.strip()!r} has the weight 0: {GRAMMAR}.")
    return prompt


def _ambiguity_of_text(part: str) -> str:
    """Return which of two readings of a prompt was taken; empty if there is only one."""
    text, numbers = _split_text(part)
    before, _, after = part.rpartition(":")
    if part.endswith(":"):
        return ""
    time = TIME.search(text)
    if time is not None and not numbers:
        return (
            f"{time[0]} is taken as text; a space before the colon makes the number after it a "
            "weight"
        )
    if numbers and text[-1:].isdigit():
        return f"{numbers[0]} is taken as a weight; a colon at the end makes all of it text"
    if before and not numbers and re.search(r"\d", after) and not re.search(r"[^\W\d]", after):
        return f"{after.strip()!r} is no number and is taken as text"
    return ""


def _is_weight(text: str) -> bool:
    return _is_stop(text) and math.isfinite(float(text))


def _is_stop(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _is_file(path: str) -> bool:
    # os.path, not Path: a text may be too long for a file name.
    return os.path.isfile(path.strip())  # noqa: PTH113
