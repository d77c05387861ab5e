"""The error that users cause and can mend, and helpers that raise or report it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

LONGEST_MESSAGE = 2000  # characters
INTERRUPTED = 130  # the exit code that shells report after Ctrl-C


class ClipagError(Exception):
    """Bad input. The message is one sentence that names the value and the remedy.

    Messages put argument names in backticks: "`max_views` is 0: …". The command line shows them as
    options ("--max-views is 0: …"), without a traceback, and exits with 2.

    Messages quote files from anywhere. So they become one line, without characters that a terminal
    obeys, and only so long that a screen holds them: if need be the middle is left out.
    """

    def __init__(self, message: str):
        line = "".join(map(_printable, message))
        half = LONGEST_MESSAGE // 2
        super().__init__(line if len(line) <= 2 * half else f"{line[:half]} … {line[-half:]}")


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else repr(character)[1:-1]


class UnknownModelError(ClipagError, RuntimeError):
    """There is no such model. OpenAI's `clip.load` raises a RuntimeError, which scripts catch."""


def library(module: str, extra: str) -> Any:
    """Import a module that `pip install 'clipag-plugins[extra]'` installs.

    Raises:
        ClipagError: the module, or something it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ClipagError(
            f"{error.name} is not installed: pip install 'clipag-plugins[{extra}]'."
        ) from error


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn bad input inside the block into one line on stderr and exit code 2.

    For modules that are run by `python -m`; `clipag` itself does the same in `cli.main`.
    """
    try:
        yield
    except (ClipagError, OSError) as error:
        print(f"clipag: {error}", file=sys.stderr)
        sys.exit(2)
