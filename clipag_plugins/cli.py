"""The command line: clipag …"""

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from .commands import (
    attack,
    bench,
    draw,
    eval,
    explain,
    finetune,
    generate,
    run,
    style,
    vqgan,
    weights,
)
from .commands.messages import as_options
from .errors import INTERRUPTED, ClipagError


def parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    root = argparse.ArgumentParser(
        prog="clipag", description="Guidance by CLIPAG: CLIP whose gradients mean something."
    )
    commands = root.add_subparsers(dest="command", required=True)
    families = (
        generate, draw, vqgan, style, run, explain, attack, eval, finetune, weights, bench,
    )  # fmt: skip
    for family in families:
        family.add(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Not every terminal can write ∞.
            stream.reconfigure(errors="replace")
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ClipagError as error:
        print(f"clipag: {as_options(str(error), options)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has gone (`clipag models | head`): let the last flush go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A full disk, a name that is too long, a folder nobody may enter: the system's words.
        print(f"clipag: {error}.", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        print(
            "clipag: There is not enough memory: choose a smaller --size or --max-views, or fewer "
            "pictures or samples at once.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("clipag: interrupted.", file=sys.stderr)
        return INTERRUPTED
    return code


def _is_lack_of_memory(error: Exception) -> bool:
    # By torch's words, since it need not have been imported: of a GPU's memory and of a CPU's.
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "DefaultCPUAllocator")
    )
