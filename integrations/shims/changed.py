"""What scripts of 2021 call in a way that libraries no longer accept.

Keywords that were renamed, then functions that were removed from classes or became stricter.
As in `rot`, each says what it did the first time that a script needs it.
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
from clipag_plugins.integrations.shims.patching import Patches


def patch(patches: Patches) -> None:
    """Put all of it in force."""
    patches.after_import({name: partial(fix, patches) for name, fix in CHANGED.items()})


# Keywords that functions and classes no longer take: what each is called now, or None if nothing.
_NOT_VERBOSE: dict[str, str | None] = {"verbose": None}
RENAMED: dict[str, dict[str, dict[str, str | None]]] = {
    "torchvision.utils": {"make_grid": {"range": "value_range"}},
    "torchvision.transforms.transforms": {
        "RandomAffine": {"fillcolor": "fill", "resample": "interpolation"},
        "RandomRotation": {"resample": "interpolation"},
    },
    "torch.optim.lr_scheduler": {
        "ReduceLROnPlateau": _NOT_VERBOSE,
        "StepLR": _NOT_VERBOSE,
        "MultiStepLR": _NOT_VERBOSE,
        "LambdaLR": _NOT_VERBOSE,
        "ExponentialLR": _NOT_VERBOSE,
        "CosineAnnealingLR": _NOT_VERBOSE,
    },
}


def _renamed(patches: Patches, module: ModuleType) -> None:
    for name, keywords in RENAMED[module.__name__].items():
        owner: Any = getattr(module, name)
        if isinstance(owner, type):
            patches.set(
                owner, "__init__", _taking(patches, name, vars(owner)["__init__"], keywords)
            )
        else:
            patches.set(module, name, _taking(patches, name, owner, keywords))


def _taking(patches: Patches, name: str, real: Any, keywords: dict[str, str | None]) -> Any:
    """Wrap `real` so that it takes the keywords it took before, unless it still does."""
    gone = {old: new for old, new in keywords.items() if old not in signature(real).parameters}

    @wraps(real)
    def take(*arguments: Any, **options: Any) -> Any:
        for old in gone.keys() & options.keys():
            value, new = options.pop(old), gone[old]
            patches.say(f"{name} takes no {old}= any more: {f'gave {new}=' if new else 'dropped'}")
            if new is not None:
                options[new] = value
        return real(*arguments, **options)

    return take


def _font(patches: Patches, module: ModuleType) -> None:
    def getsize(self: Any, text: str) -> tuple[int, int]:
        patches.say("ImageFont's getsize is gone: measured with getbbox")
        left, top, right, bottom = self.getbbox(text)
        return int(right - left), int(bottom - top)

    for name in ("FreeTypeFont", "ImageFont"):
        font = getattr(module, name)
        if not hasattr(font, "getsize"):
            patches.set(font, "getsize", getsize)


def _draw(patches: Patches, module: ModuleType) -> None:
    def textsize(self: Any, text: str, font: Any = None) -> tuple[int, int]:
        patches.say("ImageDraw's textsize is gone: measured with textbbox")
        left, top, right, bottom = self.textbbox((0, 0), text, font)
        return int(right - left), int(bottom - top)

    draw: Any = module.ImageDraw  # the class, in the module of the same name
    if not hasattr(draw, "textsize"):
        patches.set(draw, "textsize", textsize)


def _yaml(patches: Patches, module: ModuleType) -> None:
    real: Any = module.load

    @wraps(real)
    def load(stream: Any, Loader: Any = None) -> Any:
        if Loader is None:
            patches.say("yaml.load needs a Loader now: read with SafeLoader")
            Loader = module.SafeLoader
        return real(stream, Loader)

    patches.set(module, "load", load)


def _torch(patches: Patches, module: ModuleType) -> None:
    """Let torch.load read checkpoints that hold more than tensors, without running their code."""
    real: Any = module.load
    serialization: Any = module.serialization

    @wraps(real)
    def load(f: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return real(f, *arguments, **options)
        except UnpicklingError:
            if "weights_only" in options or not hasattr(serialization, "safe_globals"):
                raise  # asked for by the script, or a torch of before all this
            from clipag_plugins.untrusted import empty_class

            try:
                names = serialization.get_unsafe_globals_in_checkpoint(_rewound(f))
            except ValueError:
                names = []  # a file of before torch 1.6, which torch cannot look into
            known = _data_classes()
            stand_ins = {name: empty_class(name) for name in names if name not in known}
            allowed = [(kind, name) for name, kind in {**known, **stand_ins}.items()]
            with serialization.safe_globals(allowed):
                loaded = real(_rewound(f), *arguments, **options)
            if not names or type(loaded) in stand_ins.values():
                raise  # nothing of use was read
        if stand_ins:
            patches.say(
                f"torch.load no longer unpickles {', '.join(stand_ins)}: those parts of "
                f"{getattr(f, 'name', f)} were left empty, the tensors were read"
            )
        return loaded

    patches.set(module, "load", load)


def _rewound(f: Any) -> Any:
    """Return what torch.load was given, a path or an open file, to be read from its start."""
    if hasattr(f, "seek"):
        f.seek(0)
    return f


def _data_classes() -> dict[str, Any]:
    """Name what checkpoints hold besides tensors that is only data: arrays and options."""
    import numpy as np

    array = np.zeros(1).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    kinds: list[Any] = [Namespace, np.ndarray, np.dtype, array, scalar]
    kinds += [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    named = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in kinds}
    # numpy 2 moved these; files remember where they were when they were written.
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        named |= {f"{home}._reconstruct": array, f"{home}.scalar": scalar}
    return {**named, "_codecs.encode": codecs.encode}


def _torch_hub(patches: Patches, module: ModuleType) -> None:
    """Say where a file belongs when it cannot be downloaded."""
    real: Any = module.download_url_to_file

    @wraps(real)
    def download(url: str, dst: str, *arguments: Any, **options: Any) -> None:
        try:
            real(url, dst, *arguments, **options)
        except OSError as error:
            raise ClipagError(
                f"{url} cannot be downloaded here ({getattr(error, 'reason', error)}): fetch it "
                f"on another machine and put it at {dst}."
            ) from None

    patches.set(module, "download_url_to_file", download)


def _taming_loss(patches: Patches, module: ModuleType) -> None:
    """Spare scripts that only draw with a VQGAN the half gigabyte that training one needs."""
    import torch

    real: Any = module.LPIPS

    class LPIPS(torch.nn.Module):
        def forward(self, *images: Any) -> Any:
            if not hasattr(self, "real"):
                self.real = real().eval().to(images[0].device)
            return self.real(*images)

    def make(*arguments: Any, **options: Any) -> torch.nn.Module:
        patches.say("taming's LPIPS loss waits with its VGG16 weights until something trains")
        return LPIPS()

    patches.set(module, "LPIPS", make)


def _taming_models(patches: Patches, module: ModuleType) -> None:
    """Give the oldest build of taming-transformers the model that the later ones have."""
    if not hasattr(module, "GumbelVQ"):
        patches.put_back(module, {"GumbelVQ": "clipag_plugins.integrations.gumbel:GumbelVQ"})


CHANGED: dict[str, Callable[[Patches, ModuleType], None]] = {
    **dict.fromkeys(RENAMED, _renamed),
    "PIL.ImageFont": _font,
    "PIL.ImageDraw": _draw,
    "yaml": _yaml,
    "torch": _torch,
    "torch.hub": _torch_hub,
    "taming.models.vqgan": _taming_models,
    "taming.modules.losses.vqperceptual": _taming_loss,
}
