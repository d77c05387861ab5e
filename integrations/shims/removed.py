"""What has gone from Python's libraries since 2021, and what a script gets in its place.

Two lists, read top to bottom: modules that are gone, and names that are gone. `changed` has what
is still there but behaves otherwise. An entry does nothing until a script runs into it, and then
says so once.
"""

import collections.abc
import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.shims import changed
from clipag_plugins.integrations.shims.patching import Fill, Patches


def patch(patches: Patches) -> None:
    """Put the lists in force."""
    for name, fill in GONE_MODULES.items():
        patches.stand_in(name, fill, f"there is no module {name} any more: made a stand-in")
    fills: dict[str, Fill] = {
        name: partial(patches.put_back, names=names) for name, names in GONE_NAMES.items()
    }
    patches.after_import(fills)
    changed.patch(patches)


def _same_as(*homes: str) -> Fill:
    """Fill a module with all that modules of today hold."""

    def fill(module: ModuleType) -> None:
        for home in homes:
            found = vars(import_module(home))
            vars(module).update({k: v for k, v in found.items() if not k.startswith("__")})

    return fill


def _moviepy_editor(module: ModuleType) -> None:
    _same_as("moviepy")(module)
    vars(module)["ipython_display"] = vars(module)["display_in_notebook"]


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


def _ttools(module: ModuleType) -> None:
    # Scripts that draw with diffvg import it, for a perceptual loss that most of them never use.
    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ClipagError(f"{module.__name__}.{name} is missing: pip install torch-tools.")

    vars(module).update(__getattr__=missing, __path__=[])


GONE_MODULES: dict[str, Fill] = {
    "torch._six": _torch_six,
    "main": _main,
    "pkg_resources": _pkg_resources,
    "torch_optimizer": _torch_optimizer,
    "ttools": _ttools,
    "ttools.modules": _ttools,
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
    "moviepy.editor": _moviepy_editor,
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
    "transformers": {
        "AdamW": "torch.optim:AdamW",
        "CLIPFeatureExtractor": "transformers:CLIPImageProcessor",
    },
    "torchvision.transforms": {
        "Scale": "torchvision.transforms:Resize",
        "RandomSizedCrop": "torchvision.transforms:RandomResizedCrop",
    },
    "matplotlib.cm": {"get_cmap": "matplotlib.pyplot:get_cmap"},
    "IPython.core.display": {"display": "IPython.display:display"},
    "scipy.signal": {
        name: f"scipy.signal.windows:{name}" for name in ("gaussian", "hann", "hamming")
    },
    "torch_optimizer": {name: f"torch.optim:{name}" for name in ("RAdam", "NAdam", "AdamW")},
    "kornia": {name: f"{home}:{name}" for home, names in _KORNIA.items() for name in names.split()},
}
