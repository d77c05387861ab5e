"""What newer versions of Python's libraries have removed, and the replacement a script gets.

Two tables: `REMOVED_MODULES` and `REMOVED_NAMES`. `changed` handles what still exists but behaves
differently. An entry takes effect, and is reported once, only when a script uses it.
"""

import collections.abc
import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.shims import changed
from clipag_plugins.integrations.shims.patching import ModulePatch, Patches


def patch(patches: Patches) -> None:
    """Apply both tables, and the changes of `changed`."""
    for name, fill in REMOVED_MODULES.items():
        patches.provide_module(name, fill, f"module {name} was removed: using our replacement")
    patches.after_import(
        {name: partial(patches.restore_names, names=names) for name, names in REMOVED_NAMES.items()}
    )
    changed.patch(patches)


def _copy_from(*sources: str) -> ModulePatch:
    """Return a function that fills a module with the contents of existing modules."""

    def fill(module: ModuleType) -> None:
        for source in sources:
            contents = vars(import_module(source))
            vars(module).update({k: v for k, v in contents.items() if not k.startswith("__")})

    return fill


def _moviepy_editor(module: ModuleType) -> None:
    _copy_from("moviepy")(module)
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
    # taming-transformers imports main.py from the root of its own repository.
    def get_obj_from_str(string: str, reload: bool = False) -> Any:
        source, _, name = string.rpartition(".")
        return getattr(import_module(source), name)

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

    def find(package: Any, resource: str) -> Any:
        # Scripts name a package, or one of its modules by their __name__.
        name = package if isinstance(package, str) else package.__name__
        source = import_module(name)
        folder = getattr(source, "__path__", None) or [Path(source.__file__ or ".").parent]
        return Path(next(iter(folder)), resource)

    vars(module).update(
        packaging=packaging,
        parse_version=packaging.version.parse,
        get_distribution=get_distribution,
        resource_filename=lambda package, resource: str(find(package, resource)),
        resource_string=lambda package, resource: find(package, resource).read_bytes(),
        resource_stream=lambda package, resource: find(package, resource).open("rb"),
        resource_exists=lambda package, resource: find(package, resource).exists(),
        resource_isdir=lambda package, resource: find(package, resource).is_dir(),
        resource_listdir=lambda package, folder: [
            path.name for path in find(package, folder).iterdir()
        ],
        DistributionNotFound=metadata.PackageNotFoundError,
    )


def _torch_optimizer(module: ModuleType) -> None:
    # Scripts import many optimisers and mostly use Adam. Constructing a missing one is the error.
    import torch

    def get_optimiser(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(torch.optim, name):
            return getattr(torch.optim, name)

        def fail(*_: Any, **__: Any) -> None:
            raise ClipagError(f"The optimiser {name} is missing: pip install torch-optimizer.")

        return fail

    vars(module).update(__getattr__=get_optimiser)


def _ttools(module: ModuleType) -> None:
    # Scripts that draw with diffvg import it for a perceptual loss that most of them never use.
    def fail(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ClipagError(f"{module.__name__}.{name} is missing: pip install torch-tools.")

    vars(module).update(__getattr__=fail, __path__=[])


REMOVED_MODULES: dict[str, ModulePatch] = {
    "torch._six": _torch_six,
    "main": _main,
    "pkg_resources": _pkg_resources,
    "torch_optimizer": _torch_optimizer,
    "ttools": _ttools,
    "ttools.modules": _ttools,
    "torchvision.transforms.functional_tensor": _copy_from(
        "torchvision.transforms._functional_tensor"
    ),
    "torchvision.models.utils": _copy_from("torch.hub"),
    "pytorch_lightning.utilities.distributed": _copy_from("pytorch_lightning.utilities.rank_zero"),
    "kornia.augmentation.functional": _copy_from(
        "kornia.enhance", "kornia.geometry.transform", "kornia.color"
    ),
    "kornia.color.adjust": _copy_from("kornia.enhance"),
    "kornia.geometry.warp": _copy_from("kornia.geometry.transform"),
    "kornia.geometry.transform.crop": _copy_from("kornia.geometry.transform"),
    "moviepy.editor": _moviepy_editor,
}


def _getargspec(function: Callable[..., Any]) -> tuple[Any, ...]:
    return tuple(inspect.getfullargspec(function))[:4]


def _top_k_top_p_filtering(
    logits: Any,
    top_k: int = 0,
    top_p: float = 1.0,
    filter_value: float = -float("inf"),
    min_tokens_to_keep: int = 1,
) -> Any:
    """Filter a distribution (B, tokens) to its likeliest tokens, as transformers did until 4.39."""
    import torch

    if top_k > 0:
        top_k = min(max(top_k, min_tokens_to_keep), logits.size(-1))
        logits = logits.masked_fill(logits < logits.topk(top_k)[0][..., -1:], filter_value)
    if top_p < 1.0:
        descending, order = torch.sort(logits, descending=True)
        # A token stays as long as the likelier ones do not reach top_p, and so do the first few.
        probabilities = descending.softmax(dim=-1)
        unlikely = probabilities.cumsum(dim=-1) - probabilities > top_p
        unlikely[..., :min_tokens_to_keep] = False
        logits = logits.masked_fill(unlikely.scatter(-1, order, unlikely), filter_value)
    return logits


def _timm_modules() -> dict[str, str]:
    names = ("registry", "layers", "helpers", "hub", "features", "factory")
    return {name: f"timm.models.{name}:" for name in names}


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
REMOVED_NAMES: dict[str, dict[str, Any]] = {
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
        "top_k_top_p_filtering": _top_k_top_p_filtering,
    },
    "torch.nn.functional": {"_pad": "torch.nn.functional:pad"},
    # These exist, but a plain `import timm` no longer imports them.
    "timm.models": _timm_modules(),
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
    "kornia": {
        name: f"{source}:{name}" for source, names in _KORNIA.items() for name in names.split()
    },
}
