"""Commands that another program runs in its own process, as the studio does."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .options import choose_device

if TYPE_CHECKING:
    import torch

    from ..ascent import Callback
    from ..base import ClipagModel
    from ..starts import Preview
    from ..trajectory import Recorder


@dataclass(frozen=True)
class Host:
    """What the program that runs a command does for it, as `options.host`.

    Attributes:
        load: returns the model of that name on that device; it may keep models.
        watch: called as the callback of every ascent; a true return value ends the ascent.
        preview: called with starts, (B, 3, H, W), while the best ones are chosen.
    """

    load: "Callable[[str, torch.device], ClipagModel]"
    watch: "Callback"
    preview: "Preview"


def guiding_model(options: argparse.Namespace, name: str) -> "ClipagModel":
    """Return the model of that name on the device of --device, from the host if there is one."""
    device = choose_device(options.device)
    if "host" in options:
        model: ClipagModel = options.host.load(name, device)
        return model
    from ..hub import load_model

    return load_model(name, device)


def watched(options: argparse.Namespace, *recorders: "Recorder | None") -> "Recorder":
    """Return a callback that calls the recorders, and the host's if there is one."""
    from ..trajectory import in_turn

    return in_turn(*recorders, options.host.watch if "host" in options else None)


def previewed(options: argparse.Namespace) -> "Preview | None":
    """Return what the host calls with starts that are compared, if there is a host."""
    return options.host.preview if "host" in options else None
