"""Show an ascent while it runs, below the cell of a Jupyter notebook."""

import sys
import time
from typing import Any

from torch import Tensor

from .pictures import to_pil
from .sheet import strip

SECONDS = 0.2  # between two pictures
WIDEST = 1120  # pixels of what is shown


def new_display(tries: int = 1) -> "Display | None":
    """Return a place to show an ascent in, or None outside Jupyter.

    Args:
        tries: images of each picture, of which the best is shown.
    """
    # A kernel has imported IPython. Importing it only to ask would take time everywhere else.
    ipython: Any = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    return Display(ipython.display.DisplayHandle(), tries)


class Display:
    """One place below a cell, where each picture replaces the one before.

    Args:
        handle: IPython's `DisplayHandle`.
        tries: images of each picture, of which the best is shown.
    """

    def __init__(self, handle: Any, tries: int = 1):
        self.tries = tries
        self._handle = handle
        self._time: float | None = None

    def show(self, images: Tensor, losses: Tensor, is_last: bool = False) -> None:
        """Show images (B, 3, H, W) with their losses (B,): five times a second, and the last."""
        now = time.monotonic()
        is_first = self._time is None
        if self._time is not None and now - self._time < SECONDS and not is_last:
            return
        self._time = now
        best = losses.view(-1, self.tries).argmin(dim=1).tolist()
        chosen = [number * self.tries + index for number, index in enumerate(best)]
        picture = strip([to_pil(images[number]) for number in chosen])
        picture.thumbnail((WIDEST, WIDEST))
        (self._handle.display if is_first else self._handle.update)(picture)
