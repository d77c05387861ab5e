"""The options --size and --mask: which pixels of a picture there are, and which may change."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..defaults import SIDE
from ..errors import ClipagError

STARTS_WITHOUT_PICTURE = ("gmm", "noise", "pixels", "gradient")


def add_size(command: argparse.ArgumentParser, *aliases: str) -> None:
    """Add --size: `options.size` is what `width_and_height` takes."""
    command.add_argument(
        "--size",
        *aliases,
        type=size,
        default=SIDE,
        metavar="W[ H]",
        help=f"width and height in pixels, or one number for a square (default: {SIDE})",
    )


def size(text: str) -> int | tuple[int, ...]:
    """Read "224" or "640x360", which `join_sizes` makes of 640 360, as argparse's `type`."""
    sides = tuple(map(int, text.split("x")))
    return sides[0] if len(sides) == 1 else sides


def join_sizes(arguments: Sequence[str]) -> list[str]:
    """Join the numbers after --size or -s of a command that draws to one value, 640x360.

    An option that may take two values would also take the prompt behind it. Other commands have
    other such options: those of `clipag run` are a script's own.
    """
    if not arguments or arguments[0] not in ("generate", "draw", "vqgan"):
        return list(arguments)
    joined: list[str] = []
    for argument in arguments:
        is_size = len(joined) > 1 and joined[-2] in ("--size", "-s")
        if is_size and argument.isdecimal() and joined[-1].replace("x", "").isdecimal():
            joined[-1] += f"x{argument}"
        else:
            joined.append(argument)
    return joined


def add_mask(command: argparse.ArgumentParser) -> None:
    """Add --mask, which goes with --init."""
    command.add_argument(
        "--mask",
        type=Path,
        metavar="IMAGE",
        help="with --init IMAGE: change only what is white in this mask; the rest stays as it is",
    )


def check_mask(options: argparse.Namespace) -> None:
    """Raise ClipagError if there is a --mask and no picture as --init."""
    if options.mask is not None and options.init in (None, *STARTS_WITHOUT_PICTURE):
        raise ClipagError(f"--mask {options.mask} needs a picture to change: name one with --init.")
