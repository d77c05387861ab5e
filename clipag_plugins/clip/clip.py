"""OpenAI's `clip.clip`: the public three, and the private names that old scripts import."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from clipag_plugins import hub
from clipag_plugins.clip.simple_tokenizer import SimpleTokenizer as _Tokenizer
from clipag_plugins.errors import ClipagError
from clipag_plugins.model import available_models, build_model, load, transform
from clipag_plugins.tokenizer import tokenize

__all__ = ["available_models", "build_model", "load", "tokenize"]

_tokenizer = _Tokenizer()
_MODELS = {name: f"{source.place}:{source.address}" for name, source in hub.MODELS.items()}


def _transform(n_px: int) -> Callable[[Any], Tensor]:
    """Return the transform from a PIL image to a model's input, (3, n_px, n_px) float32."""
    return transform(n_px)


def _download(url: str, root: str | None = None) -> str:
    """Fetch the weights that a value of `_MODELS` names, and return their path.

    Raises:
        ClipagError: `url` is not such a value, or the weights cannot be had.
    """
    for name, address in _MODELS.items():
        if address == url:
            return str(hub.pull(name, root))
    raise ClipagError(f"{url!r} is not a value of clip.clip._MODELS: load weights by their name.")
