"""Calls in scripts of 2021 that newer libraries no longer accept.

Keywords that were renamed or dropped, methods that were removed from classes, and functions that
became stricter. As in `removed`, each patch is reported the first time a script depends on it.
"""

import codecs
from argparse import Namespace
from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.shims import old_kornia, old_torch
from clipag_plugins.integrations.shims.patching import Patches


def patch(patches: Patches) -> None:
    """Apply all patches of `CHANGED_MODULES`."""
    patches.after_import({name: partial(fix, patches) for name, fix in CHANGED_MODULES.items()})
    patches.after_import({"torch": partial(old_torch.patch, patches)})


# For each function or class: the keywords it no longer takes, and their new names, or None for a
# keyword that was dropped.
_NO_VERBOSE: dict[str, str | None] = {"verbose": None}
RENAMED_KEYWORDS: dict[str, dict[str, dict[str, str | None]]] = {
    "torchvision.utils": {"make_grid": {"range": "value_range"}},
    "torchvision.transforms.transforms": {
        "RandomAffine": {"fillcolor": "fill", "resample": "interpolation"},
        "RandomRotation": {"resample": "interpolation"},
    },
    "torch.optim.lr_scheduler": {
        "ReduceLROnPlateau": _NO_VERBOSE,
        "StepLR": _NO_VERBOSE,
        "MultiStepLR": _NO_VERBOSE,
        "LambdaLR": _NO_VERBOSE,
        "ExponentialLR": _NO_VERBOSE,
        "CosineAnnealingLR": _NO_VERBOSE,
    },
}


def _patch_keywords(patches: Patches, module: ModuleType) -> None:
    for name, keywords in RENAMED_KEYWORDS[module.__name__].items():
        target: Any = getattr(module, name)
        if isinstance(target, type):
            constructor = _accept_old_keywords(patches, name, vars(target)["__init__"], keywords)
            patches.set(target, "__init__", constructor)
        else:
            patches.set(module, name, _accept_old_keywords(patches, name, target, keywords))


def _accept_old_keywords(
    patches: Patches, name: str, function: Any, keywords: dict[str, str | None]
) -> Any:
    """Wrap a function so that it accepts those of the old keywords that it no longer takes."""
    parameters = signature(function).parameters
    old_keywords = {old: new for old, new in keywords.items() if old not in parameters}

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        for old in old_keywords.keys() & options.keys():
            value, new = options.pop(old), old_keywords[old]
            replacement = f"passed as {new}=" if new else "ignored"
            patches.report(f"{name} no longer takes {old}=: {replacement}")
            if new is not None:
                options[new] = value
        return function(*arguments, **options)

    return call


def _patch_image_font(patches: Patches, module: ModuleType) -> None:
    def getsize(self: Any, text: str) -> tuple[int, int]:
        patches.report("ImageFont's getsize was removed: using getbbox")
        left, top, right, bottom = self.getbbox(text)
        return int(right - left), int(bottom - top)

    for name in ("FreeTypeFont", "ImageFont"):
        font = getattr(module, name)
        if not hasattr(font, "getsize"):
            patches.set(font, "getsize", getsize)


def _patch_image_draw(patches: Patches, module: ModuleType) -> None:
    def textsize(self: Any, text: str, font: Any = None) -> tuple[int, int]:
        patches.report("ImageDraw's textsize was removed: using textbbox")
        left, top, right, bottom = self.textbbox((0, 0), text, font)
        return int(right - left), int(bottom - top)

    draw: Any = module.ImageDraw  # the class, which has the name of its module
    if not hasattr(draw, "textsize"):
        patches.set(draw, "textsize", textsize)


def _patch_yaml(patches: Patches, module: ModuleType) -> None:
    real: Any = module.load

    @wraps(real)
    def load(stream: Any, Loader: Any = None) -> Any:
        if Loader is None:
            patches.report("yaml.load now requires a Loader: using SafeLoader")
            Loader = module.SafeLoader
        return real(stream, Loader)

    patches.set(module, "load", load)


def _patch_torch_load(patches: Patches, module: ModuleType) -> None:
    """Let torch.load read checkpoints that hold more than tensors, without running their code."""
    real: Any = module.load
    serialization: Any = module.serialization

    @wraps(real)
    def load(f: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return real(f, *arguments, **options)
        except UnpicklingError:
            if "weights_only" in options or not hasattr(serialization, "safe_globals"):
                raise  # the script asked for it, or this torch has no safe_globals
            from clipag_plugins.untrusted import empty_class

            try:
                names = serialization.get_unsafe_globals_in_checkpoint(_rewind(f))
            except ValueError:
                names = []  # torch cannot inspect files written before torch 1.6
            data_classes = _data_classes()
            empty_classes = {name: empty_class(name) for name in names if name not in data_classes}
            allowed = [(kind, name) for name, kind in {**data_classes, **empty_classes}.items()]
            with serialization.safe_globals(allowed):
                loaded = real(_rewind(f), *arguments, **options)
            if not names or type(loaded) in empty_classes.values():
                raise  # nothing useful was read
        if empty_classes:
            patches.report(
                f"torch.load no longer unpickles {', '.join(empty_classes)}: those parts of "
                f"{getattr(f, 'name', f)} were left empty, the tensors were read"
            )
        return loaded

    patches.set(module, "load", load)


def _rewind(f: Any) -> Any:
    """Return torch.load's first argument, a path or an open file, ready to be read again."""
    if hasattr(f, "seek"):
        f.seek(0)
    return f


def _data_classes() -> dict[str, Any]:
    """Return the classes of harmless data in checkpoints (arrays, options), by pickled name."""
    import numpy as np

    array = np.zeros(1).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    kinds: list[Any] = [Namespace, np.ndarray, np.dtype, array, scalar]
    kinds += [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    by_name = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}
    # numpy 2 moved these; files hold the module's name at the time of writing.
    for source in ("numpy.core.multiarray", "numpy._core.multiarray"):
        by_name |= {f"{source}._reconstruct": array, f"{source}.scalar": scalar}
    return {**by_name, "_codecs.encode": codecs.encode}


def _patch_torch_hub(patches: Patches, module: ModuleType) -> None:
    """If a download fails, say where to put the file by hand."""
    real: Any = module.download_url_to_file

    @wraps(real)
    def download(url: str, dst: str, *arguments: Any, **options: Any) -> None:
        try:
            real(url, dst, *arguments, **options)
        except OSError as error:
            raise ClipagError(
                f"{url} cannot be downloaded ({getattr(error, 'reason', error)}): fetch it on "
                f"another machine and put it at {dst}."
            ) from None

    patches.set(module, "download_url_to_file", download)


def _patch_taming_loss(patches: Patches, module: ModuleType) -> None:
    """Load taming's LPIPS only when it is called: half a gigabyte that only training needs."""
    import torch

    real: Any = module.LPIPS

    class LazyLPIPS(torch.nn.Module):
        def forward(self, *images: Any) -> Any:
            if not hasattr(self, "real"):
                self.real = real().eval().to(images[0].device)
            return self.real(*images)

    def make(*arguments: Any, **options: Any) -> torch.nn.Module:
        patches.report("taming's LPIPS loss loads its VGG16 weights only for training")
        return LazyLPIPS()

    patches.set(module, "LPIPS", make)


def _patch_taming_models(patches: Patches, module: ModuleType) -> None:
    """Add GumbelVQ to the oldest build of taming-transformers, which lacks it."""
    if not hasattr(module, "GumbelVQ"):
        patches.restore_names(
            module, {"GumbelVQ": "clipag_plugins.integrations.vqgan.gumbel:GumbelVQ"}
        )


CHANGED_MODULES: dict[str, Callable[[Patches, ModuleType], None]] = {
    **dict.fromkeys(RENAMED_KEYWORDS, _patch_keywords),
    "PIL.ImageFont": _patch_image_font,
    "PIL.ImageDraw": _patch_image_draw,
    "yaml": _patch_yaml,
    "torch": _patch_torch_load,
    "torch.hub": _patch_torch_hub,
    "kornia.augmentation": old_kornia.patch,
    "taming.models.vqgan": _patch_taming_models,
    "taming.modules.losses.vqperceptual": _patch_taming_loss,
}
