"""Installs the shims at the start of a Python that a script under `clipag run` has started.

Python imports this file by itself, because `children` puts its folder on `PYTHONPATH`. It imports
no torch, and it leaves a Python of another environment alone.
"""

import json
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path


def run_hidden() -> None:
    """Run the `sitecustomize` that this one hides, if the environment has one."""
    this_folder = Path(__file__).parent
    others = [folder for folder in sys.path if Path(folder) != this_folder]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def install() -> None:
    """Install the shims with the settings of the process that started this one."""
    settings = json.loads(os.environ.get("CLIPAG_RUN", "{}"))
    if settings.get("prefix") != sys.prefix:
        return
    if find_spec("clipag_plugins") is None:
        sys.path.append(settings["path"])
    from clipag_plugins.integrations import shims

    # Workers would repeat what their parent has reported.
    worker = any("from multiprocessing" in argument for argument in sys.orig_argv)
    shims.install(**settings["install"], quiet=worker)


install()
run_hidden()
