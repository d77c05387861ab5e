"""OpenAI's `clip.clip`: the public three, and the private names that old scripts import."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from clipag_plugins import hub, registry
from clipag_plugins.base import transform
from clipag_plugins.clip.simple_tokenizer import SimpleTokenizer as _Tokenizer
from clipag_plugins.errors import ClipagError
from clipag_plugins.hub import available_models, build_model, load
from clipag_plugins.tokenizer import tokenize

__all__ = ["available_models", "build_model", "load", "tokenize"]

_tokenizer = _Tokenizer()
# Name to address in OpenAI's; here a name is an address: `hub` knows the rest.
_MODELS = {name: name for name in registry.MODELS}


def _transform(n_px: int) -> Callable[[Any], Tensor]:
    """Return the transform from a PIL image to a model's input, (3, n_px, n_px) float32."""
    return transform(n_px)


def _download(url: str, root: str | None = None) -> str:
    """Fetch the weights that a value of `_MODELS` names, and return the path of their file.

    Raises:
        ClipagError: `url` is not such a value, its weights are not in one file, or cannot be had.
    """
    if Path(url).is_file():
        return url
    if url in registry.MODELS and registry.MODELS[url].embedded:
        raise ClipagError(
            f"{url} is not in a file of OpenAI's layout, which this code goes on to read: give it "
            "a ViT checkpoint; under clipag run, that is --model FILE.pt."
        )
    return str(hub.pull(url, root))
