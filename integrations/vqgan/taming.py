"""A private copy of taming-transformers' modules, imported with current libraries.

taming (Esser, Rombach & Ommer, "Taming Transformers for High-Resolution Image Synthesis", CVPR
2021) needs the pytorch-lightning of 2020, `torch._six` and the main.py of its own checkout. The
shims supply these during the import only.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import nn
from torch.nn import functional as F

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.shims import removed
from clipag_plugins.integrations.shims.patching import Patches


@cache
def taming(name: str) -> ModuleType:
    """Import one of taming's modules, such as `taming("models.vqgan")`.

    It is a private copy: other code that imports taming gets its own, unchanged. The models are
    plain torch modules, since loading Lightning takes ten times as long as everything else.

    Raises:
        ClipagError: taming-transformers, or something it needs, is not installed.
    """
    with _importable():
        try:
            module = import_module(f"taming.{name}")
        except ModuleNotFoundError as error:
            raise ClipagError(
                f"A VQGAN is taming-transformers' own model, and {error.name} is not installed: "
                "pip install 'clipag-plugins[vqgan]'."
            ) from error
        if name == "models.vqgan":
            # The oldest build has no GumbelVQ. The shim adds it, but only during this import.
            vars(module)["GumbelVQ"] = module.GumbelVQ
            # The same function in one operation instead of two saves a quarter of a step.
            vars(sys.modules["taming.modules.diffusionmodules.model"])["nonlinearity"] = F.silu
    return module


@contextmanager
def _importable() -> Iterator[None]:
    patches = Patches()
    removed.patch(patches)
    patches.replace_package("pytorch_lightning", _lightning)
    for main in ("main", "taming.main"):
        patches.replace_package(main, _main)
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_tamings(name)}
    try:
        yield
    finally:
        for name in filter(_is_tamings, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(others)
        patches.undo()


def _is_tamings(name: str) -> bool:
    return name.split(".")[0] == "taming" or name == f"{__package__}.gumbel"


def _lightning(module: ModuleType) -> ModuleType:
    vars(module)["LightningModule"] = nn.Module
    return module


def _main(module: ModuleType) -> ModuleType:
    removed.REMOVED_MODULES["main"](module)
    return module
