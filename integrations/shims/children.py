"""Passes the shims on to every Python that a script starts.

Processes that are started by *spawn* or *forkserver*, and scripts that a script runs, begin with a
fresh interpreter. An environment variable holds the settings for them, and `PYTHONPATH` leads them
to `startup/sitecustomize.py`, which Python imports before anything else.
"""

import json
import os
import sys
from pathlib import Path

from clipag_plugins.integrations.shims.patching import Patches

VARIABLE = "CLIPAG_RUN"
STARTUP = Path(__file__).parent / "startup"


def pass_on(patches: Patches, model: str, device: str | None, pydiffvg: str | None) -> None:
    """Let the processes that this one starts install the shims with these settings."""
    settings = {
        "install": {"model": model, "device": device, "pydiffvg": pydiffvg},
        "prefix": sys.prefix,
        "path": str(Path(__file__).parents[3]),
    }
    _set(patches, VARIABLE, json.dumps(settings))
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [str(STARTUP), *(folder for folder in others if folder not in ("", str(STARTUP)))]
    _set(patches, "PYTHONPATH", os.pathsep.join(folders))


def _set(patches: Patches, name: str, value: str) -> None:
    before = os.environ.get(name)
    os.environ[name] = value

    def restore() -> None:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

    patches.on_undo(restore)
