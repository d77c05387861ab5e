"""OpenAI's `clip` package, with CLIPAG's weights.

    from clipag_plugins import clip

    model, preprocess = clip.load("ViT-B/32")

The modules of this package use absolute imports. So they also work when the package replaces
OpenAI's as `sys.modules["clip"]`.
"""

from importlib import import_module
from typing import Any

from clipag_plugins.hub import available_models, load
from clipag_plugins.tokenizer import tokenize

__all__ = ["available_models", "load", "tokenize"]

_MODULES = ("clip", "model", "simple_tokenizer")
_PRIVATE = ("_MODELS", "_convert_image_to_rgb", "_download", "_tokenizer", "_transform")


def __getattr__(name: str) -> Any:
    """Import OpenAI's submodules when they are first used, and return their private names."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _PRIVATE:
        return getattr(import_module(".clip", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
