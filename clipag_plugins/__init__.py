"""CLIP whose gradients mean something, with OpenAI CLIP's interface.

import clipag_plugins as clip

model, preprocess = clip.load_clipag()
picture = clip.generate("a red apple")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import clip
    from .arguments import RunOptions
    from .ascent import Ascent, ascend
    from .base import ClipagModel
    from .canvas import Canvas, PixelCanvas
    from .errors import ClipagError
    from .guide import Guide, Guides
    from .hub import available_models, load, load_clipag, load_model
    from .inversion import Inversion, draw_embeddings, edit, interpolate, invert
    from .masks import Masked
    from .pictures import to_pil
    from .sampler import generate
    from .smoothing import smooth
    from .targets import Target, embedding_target, image_target, text_target
    from .tokenizer import tokenize
    from .views import Views, one_view

__version__ = "0.2.0"

# Where each public name is defined.
_MODULES = {
    "Ascent": "ascent",
    "Canvas": "canvas",
    "ClipagError": "errors",
    "ClipagModel": "base",
    "Guide": "guide",
    "Guides": "guide",
    "Inversion": "inversion",
    "Masked": "masks",
    "PixelCanvas": "canvas",
    "RunOptions": "arguments",
    "Target": "targets",
    "Views": "views",
    "ascend": "ascent",
    "available_models": "hub",
    "draw_embeddings": "inversion",
    "edit": "inversion",
    "embedding_target": "targets",
    "generate": "sampler",
    "image_target": "targets",
    "interpolate": "inversion",
    "invert": "inversion",
    "load": "hub",
    "load_clipag": "hub",
    "load_model": "hub",
    "one_view": "views",
    "smooth": "smoothing",
    "text_target": "targets",
    "to_pil": "pictures",
    "tokenize": "tokenizer",
}
# Modules of OpenAI's package that scripts reach as attributes.
_OPENAI_MODULES = {
    "clip": ".clip",
    "model": ".clip.model",
    "simple_tokenizer": ".clip.simple_tokenizer",
}

__all__ = [
    "Ascent",
    "Canvas",
    "ClipagError",
    "ClipagModel",
    "Guide",
    "Guides",
    "Inversion",
    "Masked",
    "PixelCanvas",
    "RunOptions",
    "Target",
    "Views",
    "ascend",
    "available_models",
    "clip",
    "draw_embeddings",
    "edit",
    "embedding_target",
    "generate",
    "image_target",
    "interpolate",
    "invert",
    "load",
    "load_clipag",
    "load_model",
    "one_view",
    "smooth",
    "text_target",
    "to_pil",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import clipag_plugins` is instant."""
    if name not in _MODULES and name not in _OPENAI_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in _OPENAI_MODULES:
        return import_module(_OPENAI_MODULES[name], __name__)
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
