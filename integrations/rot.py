"""What has gone from Python's libraries since 2021, and what a script gets in its place.

Three lists, read top to bottom: modules that are gone, names that are gone, and behaviour that
has changed. An entry does nothing until a script runs into it, and then says so once.
"""

import codecs
import collections.abc
import inspect
from argparse import Namespace
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module, metadata
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

from ..errors import ClipagError
from .patching import Fill, Patches


def patch(patches: Patches) -> None:
    """Put the three lists in force."""
    for name, fill in GONE_MODULES.items():
        patches.stand_in(name, fill, f"there is no module {name} any more: made a stand-in")
    fills: dict[str, Fill] = {
        name: partial(patches.put_back, names=names) for name, names in GONE_NAMES.items()
    }
    patches.after_import(fills)
    patches.after_import({name: partial(fix, patches) for name, fix in CHANGED.items()})


def _same_as(*homes: str) -> Fill:
    """Fill a module with all that modules of today hold."""

    def fill(module: ModuleType) -> None:
        for home in homes:
            found = vars(import_module(home))
            vars(module).update({k: v for k, v in found.items() if not k.startswith("__")})

    return fill


def _torch_six(module: ModuleType) -> None:
    names = {
        "string_classes": (str, bytes),
        "int_classes": int,
        "container_abcs": collections.abc,
        "inf": float("inf"),
        "nan": float("nan"),
        "PY3": True,
        "PY37": True,
    }
    vars(module).update(names)


def _main(module: ModuleType) -> None:
    # taming-transformers imports from the main.py of its own checkout.
    def get_obj_from_str(string: str, reload: bool = False) -> Any:
        home, _, name = string.rpartition(".")
        return getattr(import_module(home), name)

    def instantiate_from_config(config: Any) -> Any:
        if "target" not in config:
            raise KeyError("Expected key `target` to instantiate.")
        return get_obj_from_str(config["target"])(**config.get("params", {}))

    vars(module).update(
        get_obj_from_str=get_obj_from_str, instantiate_from_config=instantiate_from_config
    )


def _pkg_resources(module: ModuleType) -> None:
    import packaging.version

    def get_distribution(name: str) -> metadata.Distribution:
        return metadata.distribution(name)

    def resource_filename(package: str, resource: str) -> str:
        from importlib.resources import files

        return str(files(package).joinpath(resource))

    vars(module).update(
        packaging=packaging,
        parse_version=packaging.version.parse,
        get_distribution=get_distribution,
        resource_filename=resource_filename,
        DistributionNotFound=metadata.PackageNotFoundError,
    )


def _torch_optimizer(module: ModuleType) -> None:
    # Scripts import a choice of optimisers and use Adam; one that is really made says what to do.
    import torch

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(torch.optim, name):
            return getattr(torch.optim, name)

        def make(*_: Any, **__: Any) -> None:
            raise ClipagError(f"The optimiser {name} is missing: pip install torch-optimizer.")

        return make

    vars(module).update(__getattr__=missing)


GONE_MODULES: dict[str, Fill] = {
    "torch._six": _torch_six,
    "main": _main,
    "pkg_resources": _pkg_resources,
    "torch_optimizer": _torch_optimizer,
    "torchvision.transforms.functional_tensor": _same_as(
        "torchvision.transforms._functional_tensor"
    ),
    "torchvision.models.utils": _same_as("torch.hub"),
    "pytorch_lightning.utilities.distributed": _same_as("pytorch_lightning.utilities.rank_zero"),
    "kornia.augmentation.functional": _same_as(
        "kornia.enhance", "kornia.geometry.transform", "kornia.color"
    ),
    "kornia.color.adjust": _same_as("kornia.enhance"),
    "kornia.geometry.warp": _same_as("kornia.geometry.transform"),
    "kornia.geometry.transform.crop": _same_as("kornia.geometry.transform"),
    "moviepy.editor": _same_as("moviepy"),
}


def _getargspec(function: Callable[..., Any]) -> tuple[Any, ...]:
    return tuple(inspect.getfullargspec(function))[:4]


_KORNIA = {
    "kornia.color": "rgb_to_hsv hsv_to_rgb rgb_to_lab lab_to_rgb rgb_to_ycbcr ycbcr_to_rgb "
    "rgb_to_grayscale rgb_to_hls hls_to_rgb rgb_to_luv luv_to_rgb rgb_to_xyz xyz_to_rgb "
    "bgr_to_rgb rgb_to_bgr bgr_to_grayscale rgb_to_yuv yuv_to_rgb",
    "kornia.filters": "gaussian_blur2d box_blur median_blur motion_blur sobel laplacian filter2d "
    "spatial_gradient canny unsharp_mask blur_pool2d",
    "kornia.geometry": "resize rotate translate scale shear warp_perspective warp_affine "
    "crop_and_resize center_crop hflip vflip rot180 pyrdown pyrup get_perspective_transform "
    "get_rotation_matrix2d affine",
    "kornia.enhance": "normalize denormalize adjust_brightness adjust_contrast adjust_gamma "
    "adjust_hue adjust_saturation equalize posterize sharpness solarize",
    "kornia.losses": "total_variation ssim_loss psnr_loss",
    "kornia.metrics": "ssim psnr",
}
GONE_NAMES: dict[str, dict[str, Any]] = {
    "PIL.Image": {
        "ANTIALIAS": "PIL.Image:LANCZOS",
        "LINEAR": "PIL.Image:BILINEAR",
        "CUBIC": "PIL.Image:BICUBIC",
    },
    "numpy": {
        **{
            name: f"builtins:{name}"
            for name in ("float", "int", "bool", "object", "str", "complex")
        },
        "unicode": "builtins:str",
        "float_": "numpy:float64",
        "complex_": "numpy:complex128",
        "string_": "numpy:bytes_",
        "unicode_": "numpy:str_",
        **dict.fromkeys(("Inf", "Infinity", "infty", "PINF"), "numpy:inf"),
        "NINF": float("-inf"),
        "NaN": "numpy:nan",
        "product": "numpy:prod",
        "cumproduct": "numpy:cumprod",
        "alltrue": "numpy:all",
        "sometrue": "numpy:any",
        "in1d": "numpy:isin",
        "trapz": "numpy:trapezoid",
        "round_": "numpy:round",
        "row_stack": "numpy:vstack",
        "mat": "numpy:asmatrix",
    },
    "collections": {
        name: f"collections.abc:{name}" for name in collections.abc.__all__ if name != "ByteString"
    },
    "inspect": {"getargspec": _getargspec},
    "pkg_resources": {"packaging": "packaging:"},
    "transformers": {"AdamW": "torch.optim:AdamW"},
    "torch_optimizer": {name: f"torch.optim:{name}" for name in ("RAdam", "NAdam", "AdamW")},
    "kornia": {name: f"{home}:{name}" for home, names in _KORNIA.items() for name in names.split()},
}


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
            try:
                names = serialization.get_unsafe_globals_in_checkpoint(_rewound(f))
            except ValueError:
                names = []  # a file of before torch 1.6, which torch cannot look into
            known = _data_classes()
            inert = {name: _inert(name) for name in names if name not in known}
            allowed = [(kind, name) for name, kind in {**known, **inert}.items()]
            with serialization.safe_globals(allowed):
                loaded = real(_rewound(f), *arguments, **options)
            if not names or type(loaded) in inert.values():
                raise  # nothing of use was read
        if inert:
            patches.say(
                f"torch.load no longer unpickles {', '.join(inert)}: those parts of "
                f"{getattr(f, 'name', f)} were left empty, the tensors were read"
            )
        return loaded

    patches.set(module, "load", load)


def _rewound(f: Any) -> Any:
    """Return what torch.load was given, a path or an open file, to be read from its start."""
    if hasattr(f, "seek"):
        f.seek(0)
    return f


def _inert(name: str) -> type:
    """Make a class that takes the place of `name` in a checkpoint, and that does nothing."""

    def nothing(self: Any, *_: Any, **__: Any) -> None:
        return None

    methods = dict.fromkeys(("__init__", "__setstate__", "append", "__setitem__"), nothing)
    return type(name.rpartition(".")[2], (), methods)


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
    "PIL.ImageFont": _font,
    "PIL.ImageDraw": _draw,
    "yaml": _yaml,
    "torch": _torch,
    "torch.hub": _torch_hub,
    "taming.models.vqgan": _taming_models,
    "taming.modules.losses.vqperceptual": _taming_loss,
}
