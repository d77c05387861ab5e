"""The one error that users cause and can mend, and what raises it for a missing library."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class ClipagError(ValueError):
    """Bad input. The message is one sentence that names the value and the remedy.

    The command line prints it without a traceback and exits with 2.
    """


def library(module: str, extra: str) -> Any:
    """Import a module that `pip install 'clipag-plugins[extra]'` brings.

    Raises:
        ClipagError: it, or something it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ClipagError(
            f"{error.name} is not installed: pip install 'clipag-plugins[{extra}]'."
        ) from error


@contextmanager
def one_sentence() -> Iterator[None]:
    """End a module that is run by itself as `clipag` ends on bad input: no traceback, and 2."""
    try:
        yield
    except (ClipagError, OSError) as error:
        print(f"clipag: {error}", file=sys.stderr)
        sys.exit(2)
