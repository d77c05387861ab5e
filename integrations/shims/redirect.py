"""Let scripts of 2021 and 2022 run unchanged in this process and in those that it starts.

`install()` makes `import clip` and `from CLIP import clip` give CLIPAG, and `import pydiffvg` give
`clipag_plugins.integrations.pydiffvg` where no pydiffvg is installed. It also restores what newer
versions of Python's libraries have removed (`removed`) or changed (`changed`), and with
`device="cpu"` runs code written for CUDA on the CPU (`on_cpu`). `uninstall()` reverts all of it.
Importing this module changes nothing. Neither it nor `install()` imports torch, because every
Python that a script starts installs the shims, and most of these never need torch.
"""

import sys
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clipag_plugins.defaults import MODEL
from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.shims import children, removed, scalars
from clipag_plugins.integrations.shims.patching import Patches

if TYPE_CHECKING:
    from torch import Tensor

    from clipag_plugins.base import ClipagModel

OUR_CLIP = "clipag_plugins.clip"
# Packages with a copy of OpenAI's clip.py, whose `load` returns a transform of tensors.
COPIES_OF_CLIP = ("deep_daze.clip", "big_sleep.clip")
OUR_PYDIFFVG = "clipag_plugins.integrations.pydiffvg"
_installed: Patches | None = None


def install(
    model: str | None = None,
    device: str | None = None,
    pydiffvg: str | None = None,
    quiet: bool = False,
) -> Patches:
    """Redirect the imports of this process's scripts, and of every Python that they start.

    A second call replaces the first.

    Args:
        model: the weights that every `clip.load` returns, whatever name the script passes. A path
            of an existing checkpoint is loaded as it is. None is clipag-mini.
        device: "cpu" runs on the CPU what asks for CUDA; None leaves devices alone.
        pydiffvg: "ours" replaces an installed pydiffvg; None leaves an installed one in place.
        quiet: do not report which patches take effect.

    Returns:
        The patches, to which a caller may add more.

    Raises:
        ClipagError: `device` or `pydiffvg` has another value.
    """
    if device not in (None, "cpu"):
        raise ClipagError(f"`device` is {device!r}: a script can only be forced to cpu.")
    if pydiffvg not in (None, "ours"):
        raise ClipagError(f"`pydiffvg` is {pydiffvg!r}: choose ours, or leave it out.")
    uninstall()
    global _installed
    patches = _installed = Patches(quiet)
    model = model or MODEL
    if Path(model).is_file():
        model = str(Path(model).resolve())  # the script may change the current folder
    children.pass_on(patches, model, device, pydiffvg)
    removed.patch(patches)
    if device == "cpu":
        patches.after_import({"torch": lambda _: _run_on_cpu(patches)})
    _replace_clip(patches, model, on_cpu=device == "cpu")
    _provide_pydiffvg(patches, replace=pydiffvg == "ours")
    scalars.patch(patches)
    return patches


def uninstall() -> None:
    """Revert everything that `install` changed."""
    global _installed
    if _installed is not None:
        _installed.undo()
        _installed = None


def _run_on_cpu(patches: Patches) -> None:
    from clipag_plugins.integrations.shims import on_cpu

    on_cpu.patch(patches)


def _replace_clip(patches: Patches, model: str, on_cpu: bool) -> None:
    def import_ours(name: str) -> ModuleType:
        package = import_module(OUR_CLIP)
        if not hasattr(package.load, "chosen_model"):
            _prepare_ours(patches, package, model, on_cpu)
            hidden = _hidden_by_ours()
            patches.report(
                f"import clip gives {OUR_CLIP}"
                + (f", not the script's own {hidden}" if hidden else "")
            )
        return import_module(name.replace("clip", OUR_CLIP, 1))

    def make_clip(module: ModuleType) -> ModuleType:
        return import_ours(module.__name__)

    def make_checkout(module: ModuleType) -> ModuleType:
        # CLIP is the folder of a git checkout of openai/CLIP; the package clip lies in it.
        inner_name = module.__name__.removeprefix("CLIP").removeprefix(".")
        if inner_name:
            return import_ours(inner_name)
        module.__path__ = []
        vars(module)["clip"] = import_module("clip")
        return module

    def make_copy(module: ModuleType) -> ModuleType:
        ours = import_ours("clip").clip
        vars(module).update({k: v for k, v in vars(ours).items() if not k.startswith("__")})
        vars(module)["load"] = partial(_load_for_tensors, ours.load)
        # The copies are of a time when tokens were int64.
        vars(module)["tokenize"] = lambda *texts, **options: ours.tokenize(*texts, **options).long()
        patches.report(f"import {module.__name__} gives {OUR_CLIP}")
        return module

    patches.replace_package("clip", make_clip)
    patches.replace_package("CLIP", make_checkout)
    for name in COPIES_OF_CLIP:
        patches.replace_package(name, make_copy)


def _prepare_ours(patches: Patches, package: ModuleType, model: str, on_cpu: bool) -> None:
    """Give our package `clip` what scripts expect of OpenAI's."""
    from clipag_plugins.base import ClipagModel

    map_device: Callable[[Any], Any] | None = None
    if on_cpu:
        from clipag_plugins.integrations.shims.on_cpu import cuda_to_cpu

        map_device = cuda_to_cpu
    patches.set(ClipagModel, "encode_image", _without_weight_gradients(ClipagModel.encode_image))
    load = _load_chosen(patches, package.load, model, map_device)
    patches.set(package, "load", load)
    patches.set(package.clip, "load", load)
    # Scripts look up or check a model's name in these before they load it.
    names = _openai_names()
    for module in (package, package.clip):
        patches.set(module, "available_models", lambda: list(names))
    patches.set(package.clip, "_MODELS", dict.fromkeys(names, model))


def _hidden_by_ours() -> str | None:
    """Return the folder or file beside the script that `import clip` would find, if any."""
    beside = sys.path[0] or "."
    spec = PathFinder.find_spec("clip", [beside])
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))))
    return spec.origin


def _load_for_tensors(load: Any, *arguments: Any, **options: Any) -> Any:
    """Load a model as the copies of OpenAI's clip.py do, whose transform takes tensors."""
    from clipag_plugins.base import normalize

    model, _ = load(*arguments, **options)
    return model, normalize


def _provide_pydiffvg(patches: Patches, replace: bool) -> None:
    text = f"import pydiffvg gives {OUR_PYDIFFVG}"

    def copy_ours_into(module: ModuleType) -> None:
        ours = import_module(OUR_PYDIFFVG)
        vars(module).update({name: getattr(ours, name) for name in ours.__all__})

    def make(module: ModuleType) -> ModuleType:
        copy_ours_into(module)
        patches.report(text)
        return module

    if replace:
        patches.replace_package("pydiffvg", make)
    else:
        patches.provide_module("pydiffvg", copy_ours_into, text)


def _openai_names() -> list[str]:
    from clipag_plugins import registry

    names = (name for name, source in registry.MODELS.items() if source.citation == registry.OPENAI)
    return [name.removeprefix("vanilla:") for name in names]


def _load_chosen(
    patches: Patches, load: Any, model: str, map_device: Callable[[Any], Any] | None
) -> Any:
    """Wrap `clip.load` so that it loads `model`, unless it is given the path of a file."""

    @wraps(load)
    def load_chosen(name: str, *arguments: Any, **options: Any) -> Any:
        if not Path(name).is_file():
            if name != model:
                patches.report(f"clip.load({name!r}) gives {model}")
            name = model
        if map_device is not None:
            arguments = tuple(map(map_device, arguments))
            options = {key: map_device(value) for key, value in options.items()}
        return load(name, *arguments, **options)

    vars(load_chosen)["chosen_model"] = model
    return load_chosen


def _without_weight_gradients(encode: Any) -> Any:
    """Wrap `encode_image` so that the weights take no gradient when the image takes one.

    Many scripts never freeze their CLIP, and then spend a third of their time on gradients of
    weights that nothing reads. Nothing changes in training mode, nor for images that need no
    gradient, so explanations that differentiate by the weights still work.
    """

    @wraps(encode)
    def encode_image(model: "ClipagModel", image: "Tensor") -> "Tensor":
        if model.training or not image.requires_grad:
            return encode(model, image)  # type: ignore[no-any-return]
        trainable = [weight for weight in model.visual.parameters() if weight.requires_grad]
        for weight in trainable:
            weight.requires_grad_(False)
        try:
            return encode(model, image)  # type: ignore[no-any-return]
        finally:
            for weight in trainable:
                weight.requires_grad_(True)

    return encode_image
