"""Checks of the arguments that several functions share. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ClipagError

SMALLEST, LARGEST = 16, 2048  # pixels of a side
MOST_VIEWS = 4096
FIRST_TOO_LARGE_SEED = 2**63


@dataclass(frozen=True)
class RunOptions:
    """How a run computes and reads its prompts, not what it draws.

    Attributes:
        precision: what the image tower computes in: "auto" (bfloat16 where the
            hardware has it), "float32", "bfloat16" or "float16". The loss is float32.
        max_views: views that the image tower sees at once; fewer need less memory. (All views of
            one image are made at once, however many.)
        compile: pass the image tower through `torch.compile`, on CUDA with CUDA graphs. On CPUs it
            takes a minute or more before the first step and gains nothing.
        truncate: cut prompts of more than 77 tokens instead of refusing them.
        progress: show a progress bar.
        prior: the file of a prior that `clipag prior` trained, or "diffusion" or "autoregressive"
            for one that comes with the package: prompts become image embeddings that it draws.

    Raises:
        ClipagError: `max_views` is less than 1.
    """

    precision: str = "auto"
    max_views: int = 64
    compile: bool = False
    truncate: bool = False
    progress: bool = True
    prior: str | Path | None = None

    def __post_init__(self) -> None:
        if self.max_views < 1:
            raise ClipagError(
                f"`max_views` is {self.max_views}: the image tower must see at least 1 at once."
            )


def width_and_height(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of a size that is one side or both.

    Raises:
        ClipagError: a side is out of range.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ClipagError(f"`size` has {len(sides)} numbers: give one side, or width and height.")
    for side in sides:
        check_side(side)
    return sides


def check_steps(steps: int) -> None:
    """Raise ClipagError unless there is at least one step."""
    if steps < 1:
        raise ClipagError(f"`steps` is {steps}: an ascent takes at least 1.")


def check_side(size: int) -> None:
    """Raise ClipagError unless a picture's side can be drawn."""
    if not SMALLEST <= size <= LARGEST:
        raise ClipagError(f"`size` is {size}: choose a side from {SMALLEST} to {LARGEST} pixels.")


def check_views(views: int | None) -> None:
    """Raise ClipagError unless a number of views is possible; None stands for the default."""
    if views is not None and not 1 <= views <= MOST_VIEWS:
        raise ClipagError(f"`views` is {views}: choose from 1 to {MOST_VIEWS}.")


def seeds_of(seed: int | Sequence[int]) -> list[int]:
    """Return one or several seeds as a list.

    Raises:
        ClipagError: there is none, or one is outside torch's range.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    for number in seeds:
        if not 0 <= number < FIRST_TOO_LARGE_SEED:
            raise ClipagError(f"`seed` is {number}: choose a number from 0 to 2⁶³ − 1.")
    if not seeds:
        raise ClipagError("There is no seed: give a number, or several.")
    return seeds


def fraction(text: str) -> float:
    """Read a number or a fraction such as 8/255; raise ValueError if it is neither."""
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / (float(bottom) if slash else 1)
    except ZeroDivisionError as error:
        raise ValueError(f"{text!r} divides by 0") from error
