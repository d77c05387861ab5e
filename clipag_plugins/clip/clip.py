"""OpenAI's `clip.clip`: its public functions, and the private names that old scripts import."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from clipag_plugins import hub, registry
from clipag_plugins.base import convert_to_rgb, transform
from clipag_plugins.errors import ClipagError
from clipag_plugins.hub import available_models, build_model, load
from clipag_plugins.tokenizer import shared_tokenizer, tokenize

__all__ = ["available_models", "build_model", "load", "tokenize"]

_convert_image_to_rgb = convert_to_rgb
_tokenizer = shared_tokenizer()
# OpenAI's maps names to web addresses. Here `_download` takes the name itself.
_MODELS = {name: name for name in registry.MODELS}


def _transform(n_px: int) -> Callable[[Any], Tensor]:
    """Return the transform from a PIL image to a model's input, (3, n_px, n_px) float32."""
    return transform(n_px)


def _download(url: str, root: str | None = None) -> str:
    """Fetch the weights of a model, and return the path of their file.

    Args:
        url: a value of `_MODELS`, or the path of a file, which is returned as it is.
        root: folder for downloads instead of the usual caches.

    Raises:
        ClipagError: there is no such model, its weights are not in a file of OpenAI's layout, or
            they cannot be fetched.
    """
    if Path(url).is_file():
        return url
    if url in registry.MODELS and registry.MODELS[url].embedded:
        raise ClipagError(
            f"The weights of {url} are not in a file of OpenAI's layout, which this script would "
            "read next: choose a ViT's checkpoint as `model`."
        )
    return str(hub.pull(url, root))
