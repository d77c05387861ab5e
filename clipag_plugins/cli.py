"""The command line, `clipag`: parse arguments, run a command, report an error in one sentence."""

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from . import __version__
from .commands import (
    attack,
    bench,
    comfyui,
    completion,
    decoder,
    draw,
    eval,
    explain,
    finetune,
    generate,
    invert,
    prior,
    probe,
    run,
    studio,
    style,
    unclip,
    vqgan,
    weights,
)
from .commands.canvas_options import join_sizes
from .commands.messages import as_options
from .errors import INTERRUPTED, ClipagError

OBJECTS_BETWEEN_COLLECTIONS = 50_000
# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

EPILOG = """\
clipag COMMAND --help shows a command's options and examples.

An error is reported in one sentence, with exit code 2. Set CLIPAG_TRACEBACK=1 in the environment to
see its traceback instead.
"""
FIRST = """\
clipag draws what a text says, along the gradient of CLIPAG, a robust CLIP. Type first:

  clipag generate "a red apple"    a-red-apple-0.png, in a few seconds, without a network
  clipag draw "a red apple"        strokes, as SVG
  clipag studio                    the same and more on a page in a browser
  clipag models                    the models, and which are on this machine

  clipag --help                    all commands
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and options."""
    root = argparse.ArgumentParser(
        prog="clipag",
        description="Guidance by CLIPAG: CLIP whose gradients mean something.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = root.add_subparsers(dest="command", required=True)
    families = (
        generate, draw, vqgan, style, invert, unclip, run, explain, probe, attack, eval, finetune,
        prior, decoder, weights, bench, comfyui, studio,
    )  # fmt: skip
    for family in families:
        family.add(commands)
    completion.add(commands, root)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input, 130 after Ctrl-C.

    With CLIPAG_TRACEBACK=1 in the environment, errors are raised instead of reported.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Not every terminal can print ∞.
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        print(FIRST, end="")
        return 0
    options = parser().parse_args(join_sizes(words))
    tune_process()
    try:
        code: int = options.run(options)
    except BrokenPipeError:
        # The reader is gone (`clipag models | head`): discard what is still flushed on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ClipagError, OSError, MemoryError, RuntimeError, KeyboardInterrupt) as error:
        message = _user_message(error, options)
        if message is None or os.environ.get("CLIPAG_TRACEBACK") == "1":
            raise
        print(f"clipag: {message}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 2
    return code


def tune_process() -> None:
    """Spare this process work that would serve longer and smaller ones.

    Python looks for garbage 70 times less often: while torch is imported, each search takes longer
    than the last, and there is none. glibc keeps freed memory for the next step, which needs as
    much; otherwise the system clears each page before it lends it again.
    """
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # other C libraries have none
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _user_message(error: BaseException, options: argparse.Namespace) -> str | None:
    """Return the message for an error that the user can mend, and None for any other error."""
    if isinstance(error, ClipagError):
        return as_options(str(error), options)
    if isinstance(error, OSError):  # such as a full disk, or a file name that is too long
        return f"{error}."
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    if _is_lack_of_memory(error):
        return (
            "There is not enough memory: choose a smaller --size or --max-views, or fewer pictures "
            "or samples at once."
        )
    return None


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch's errors are recognised by their text, on GPUs and on CPUs, so as not to import torch.
    texts = ("out of memory", "DefaultCPUAllocator")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
