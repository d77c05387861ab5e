"""CLIP whose gradients mean something, with OpenAI CLIP's interface.

import clipag_plugins as clip

model = clip.load_clipag()
picture = clip.generate("a red apple")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import clip
    from .ascent import Ascent, ascend
    from .canvas import Canvas, PixelCanvas
    from .errors import ClipagError
    from .guide import Guide, Target, image_target, text_target
    from .model import ClipagModel, available_models, load, load_clipag
    from .sampler import generate
    from .smoothing import smooth
    from .tokenizer import tokenize
    from .views import Views, one_view

_HOMES = {
    "Ascent": "ascent",
    "Canvas": "canvas",
    "ClipagError": "errors",
    "ClipagModel": "model",
    "Guide": "guide",
    "PixelCanvas": "canvas",
    "Target": "guide",
    "Views": "views",
    "ascend": "ascent",
    "available_models": "model",
    "generate": "sampler",
    "image_target": "guide",
    "load": "model",
    "load_clipag": "model",
    "one_view": "views",
    "smooth": "smoothing",
    "text_target": "guide",
    "tokenize": "tokenizer",
}
# Modules of OpenAI's package that scripts reach as attributes.
_PACKAGES = {"clip": ".clip", "model": ".model", "simple_tokenizer": ".clip.simple_tokenizer"}

__all__ = [
    "Ascent",
    "Canvas",
    "ClipagError",
    "ClipagModel",
    "Guide",
    "PixelCanvas",
    "Target",
    "Views",
    "ascend",
    "available_models",
    "clip",
    "generate",
    "image_target",
    "load",
    "load_clipag",
    "one_view",
    "smooth",
    "text_target",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import clipag_plugins` stays instant."""
    if name not in _HOMES and name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in _PACKAGES:
        return import_module(_PACKAGES[name], __name__)
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
