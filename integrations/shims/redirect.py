"""Let scripts of 2021 and 2022 run as they are, in this process.

`install()` answers `import clip` and `from CLIP import clip` with ours, `import pydiffvg` too where
there is none, and puts back what such scripts expect of their libraries and no longer find: see
`rot`, and `on_cpu` for `device="cpu"`. `uninstall()` takes all of it back. Nothing is changed
before, or by an import.
"""

from functools import wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from clipag_plugins.base import ClipagModel
from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.shims import removed
from clipag_plugins.integrations.shims.patching import Patches

OURS = "clipag_plugins.clip"
OUR_PYDIFFVG = "clipag_plugins.integrations.pydiffvg"
_installed: Patches | None = None


def install(
    model: str | None = None, device: str | None = None, pydiffvg: str | None = None
) -> None:
    """Have this process's scripts find what they expect.

    Installing again replaces what was installed before.

    Args:
        model: the weights that every `clip.load` gets, whatever name it asks for; the path of
            a checkpoint is still loaded as it is. None is clipag-mini.
        device: "cpu" runs on the CPU what asks for cuda; None leaves devices alone.
        pydiffvg: "ours" answers `import pydiffvg` with ours; None does where there is no other.

    Raises:
        ClipagError: the device or pydiffvg is another one.
    """
    if device not in (None, "cpu"):
        raise ClipagError(f"The device is {device!r}: only cpu can be forced on a script.")
    if pydiffvg not in (None, "ours"):
        raise ClipagError(f"pydiffvg is {pydiffvg!r}: only ours can be forced on a script.")
    uninstall()
    global _installed
    patches = _installed = Patches()
    removed.patch(patches)
    move = None
    if device == "cpu":
        from clipag_plugins.integrations.shims import on_cpu

        on_cpu.patch(patches)
        move = on_cpu.here
    _replace_clip(patches, model or "clipag-mini", move)
    _give_pydiffvg(patches, always=pydiffvg == "ours")


def uninstall() -> None:
    """Take back all that `install` changed."""
    global _installed
    if _installed is not None:
        _installed.undo()
        _installed = None


def _replace_clip(patches: Patches, model: str, move: Any) -> None:
    patches.set(ClipagModel, "encode_image", _sparing(ClipagModel.encode_image))

    def ours(name: str) -> ModuleType:
        package = import_module(OURS)
        if not hasattr(package.load, "chosen"):
            load = _choosing(patches, package.load, model, move)
            patches.set(package, "load", load)
            patches.set(package.clip, "load", load)
            # Where scripts first look up or check the name that they load.
            names = _openai_names()
            for home in (package, package.clip):
                patches.set(home, "available_models", lambda: list(names))
            patches.set(package.clip, "_MODELS", dict.fromkeys(names, model))
            patches.say(f"import clip gives {OURS}")
        return import_module(name.replace("clip", OURS, 1))

    def clip(module: ModuleType) -> ModuleType:
        return ours(module.__name__)

    def checkout(module: ModuleType) -> ModuleType:
        # A checkout of openai/CLIP: the folder, and the package in it.
        below = module.__name__.removeprefix("CLIP").removeprefix(".")
        if below:
            return ours(below)
        module.__path__ = []
        vars(module)["clip"] = import_module("clip")
        return module

    patches.replace_package("clip", clip)
    patches.replace_package("CLIP", checkout)


def _give_pydiffvg(patches: Patches, always: bool) -> None:
    text = f"import pydiffvg gives {OUR_PYDIFFVG}"

    def fill(module: ModuleType) -> None:
        ours = import_module(OUR_PYDIFFVG)
        vars(module).update({name: getattr(ours, name) for name in ours.__all__})

    def make(module: ModuleType) -> ModuleType:
        fill(module)
        patches.say(text)
        return module

    if always:
        patches.replace_package("pydiffvg", make)
    else:
        patches.stand_in("pydiffvg", fill, text)


def _openai_names() -> list[str]:
    from clipag_plugins import registry

    openais = (
        name for name, source in registry.MODELS.items() if source.citation == registry.OPENAI
    )
    return [name.removeprefix("vanilla:") for name in openais]


def _choosing(patches: Patches, real: Any, model: str, move: Any) -> Any:
    """Wrap `clip.load` so that it loads `model`, except where it is given a file."""

    @wraps(real)
    def load(name: str, *arguments: Any, **options: Any) -> Any:
        if not Path(name).is_file():
            if name != model:
                patches.say(f"clip.load({name!r}) gets {model}")
            name = model
        if move is not None:
            arguments = tuple(map(move, arguments))
            options = {key: move(value) for key, value in options.items()}
        return real(name, *arguments, **options)

    vars(load)["chosen"] = model
    return load


def _sparing(encode: Any) -> Any:
    """Wrap `encode_image` so that weights take no gradient where the image asks for one.

    Many scripts never freeze their CLIP, and a third of their time goes into gradients of
    weights that no one reads. In training mode nothing changes, nor for images that ask for
    no gradient: explanations by way of the weights' graph go on working.
    """

    @wraps(encode)
    def encode_image(model: ClipagModel, image: Tensor) -> Tensor:
        if model.training or not image.requires_grad:
            return encode(model, image)  # type: ignore[no-any-return]
        learning = [weight for weight in model.visual.parameters() if weight.requires_grad]
        for weight in learning:
            weight.requires_grad_(False)
        try:
            return encode(model, image)  # type: ignore[no-any-return]
        finally:
            for weight in learning:
                weight.requires_grad_(True)

    return encode_image
