"""Load models: by name, from a file, from a folder or from the Hugging Face Hub."""

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import architecture, checkpoint, download, embedded, mini, untrusted
from .base import ClipagModel, transform
from .defaults import MODEL
from .errors import ClipagError, UnknownModelError
from .model_config import check_config
from .registry import MODELS, Source
from .streams import draw_nothing
from .vit import convert_weights

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
# Names of the weights file in OpenCLIP repositories, the safe format first.
WEIGHTS = (OPEN_CLIP_WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
REPOSITORY = r"[\w.-]+/[\w.-]+"
FILES = (".bin", ".pt", ".pth", ".safetensors")  # endings of weights files
MINI_CONFIG, MINI_WEIGHTS = "config.json", "model.safetensors"


def available_models() -> list[str]:
    """Return the names of models that `load` and `load_model` take."""
    return list(MODELS)


def load(
    name: str | os.PathLike[str] = MODEL,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
) -> tuple[ClipagModel, Callable[[Any], Tensor]]:
    """Load a model and its preprocessing, as OpenAI's `clip.load` does.

    Args:
        name: a name of `available_models()`, a checkpoint file, a folder, or a repository
            of the Hugging Face Hub as "owner/name".
        device: where the model goes; by default CUDA if there is one. On CUDA the weights
            are half precision, as OpenAI's are.
        jit: accepted for old scripts; true gives a warning, since models are not TorchScript.
        download_root: folder for downloads instead of the usual caches.

    Returns:
        The model in eval mode, and the transform from a PIL image to its input.

    Raises:
        UnknownModelError: there is no such model; it is a ClipagError and a RuntimeError.
        ClipagError: the file is not a CLIP's, or the weights cannot be fetched.
    """
    if jit:
        warnings.warn("jit=True is ignored: the model is a plain torch module.", stacklevel=2)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    model = _load(name, download_root)
    if device.type == "cuda":
        convert_weights(model)
    model = model.to(device).eval()
    return model, transform(model.visual.input_resolution, model.preprocessing)


# For scripts that keep OpenAI's `clip.load` beside it.
load_clipag = load


def load_model(
    name: str | os.PathLike[str] = MODEL,
    device: str | torch.device = "cpu",
    download_root: str | Path | None = None,
) -> ClipagModel:
    """Load a model for guidance: frozen, in eval mode and in float32.

    Args:
        name: a name of `available_models()`, a checkpoint file, a folder, or a repository
            of the Hugging Face Hub as "owner/name".
        device: where the model goes.
        download_root: folder for downloads instead of the usual caches.

    Raises:
        UnknownModelError: there is no such model; it is a ClipagError and a RuntimeError.
        ClipagError: the file is not a CLIP's, or the weights cannot be fetched.
    """
    return _load(name, download_root).to(device).eval().requires_grad_(False)


def build_model(state_dict: Mapping[str, Tensor]) -> ClipagModel:
    """Build a CLIP from a state dict in OpenAI's names, as `clip.model.build_model` does.

    The activation is OpenAI's QuickGELU, unless the state dict tells otherwise, as those of this
    package do. The model is float32 and in eval mode.

    Raises:
        ClipagError: the state dict is not a CLIP's.
    """
    return model_from_state(state_dict, "state dict", quick_gelu=True).eval()


def model_from_state(
    state: Mapping[str, Tensor], what: str, name: str = "CLIP", quick_gelu: bool | None = None
) -> ClipagModel:
    """Build a model from any state dict, that of an embedded model included, on the CPU.

    Args:
        state, what, name, quick_gelu: as for `architecture.from_state`.

    Raises:
        ClipagError: the state dict is not a CLIP's.
    """
    weights = checkpoint.clean(state, what)
    if not checkpoint.is_embedded_model(weights):
        return architecture.from_state(state, what, name, quick_gelu)
    return _embedded_model(embedded.config_for(weights), weights, what, name)


def _load(name: str | os.PathLike[str], download_root: str | Path | None) -> ClipagModel:
    """Load a model on the CPU. Its weights require gradients."""
    text = os.fspath(name)
    if text in MODELS:
        model = _load_named(text, MODELS[text], download_root)
        model.source = MODELS[text]
        return model
    path = Path(text).expanduser()
    if path.is_file() and _has_config_beside(path):
        return from_pretrained(str(path.parent))
    if path.is_file():
        return model_from_state(untrusted.read(path), str(path), path.name)
    if f"vanilla:{text}" in MODELS:
        robust = [key for key in MODELS if not key.startswith(("vanilla", "clip-"))]
        raise UnknownModelError(
            f"There is no CLIPAG of {text}: choose 'vanilla:{text}', which is OpenAI's model, or "
            f"one of the robust models {', '.join(robust)}."
        )
    if path.is_dir() or (_may_be_repository(text) and path.suffix not in FILES):
        return from_pretrained(text, cache_dir=download_root)
    raise UnknownModelError(
        f"There is no model or weights file called {text!r}: choose one of {', '.join(MODELS)}."
    )


def _may_be_repository(name: str) -> bool:
    """Return whether to ask the Hub for "owner/name". A mistyped "ViT-B/23" is no repository."""
    owner = name.partition("/")[0]
    of_models = any(m.removeprefix("vanilla:").startswith(f"{owner}/") for m in MODELS)
    return re.fullmatch(REPOSITORY, name) is not None and not of_models


def _has_config_beside(path: Path) -> bool:
    """Return whether a weights file is in a folder with the config that belongs to it."""
    if path.name in WEIGHTS:
        return (path.parent / OPEN_CLIP_CONFIG).is_file()
    config = path.parent / MINI_CONFIG
    return path.name == MINI_WEIGHTS and config.is_file() and "clipag" in _read_config(config)


def pull(name: str, download_root: str | Path | None = None) -> Path:
    """Fetch the weights of a named model or a Hub repository, and return their path.

    Raises:
        ClipagError: there is no such model, or it cannot be fetched.
    """
    source = MODELS.get(name)
    if source is None:
        if not _may_be_repository(name):
            raise UnknownModelError(
                f"There is no model {name!r}: choose one of {', '.join(MODELS)}."
            )
        return _repository(name, None, download_root, None)[1]
    if source.place == "embedded":
        return embedded.checked_path(embedded.read_config()["models"][name]["image"])
    if source.place == "zenodo":
        record, filename = source.address.split("/")
        return download.zenodo_file(record, filename, download.cache_folder(download_root))
    return _repository(source.address, None, download_root, None)[1]


def is_cached(name: str) -> bool:
    """Return whether a named model works without a download."""
    source = MODELS[name]
    if source.place == "zenodo":
        return (download.cache_folder() / source.address.split("/")[1]).is_file()
    return source.embedded or any(download.is_cached(source.address, file) for file in WEIGHTS)


def _load_named(name: str, source: Source, root: str | Path | None) -> ClipagModel:
    if source.place == "embedded":
        return embedded.load(name)
    if source.place == "hub":
        model = from_pretrained(source.address, cache_dir=root)
        model.name = name
        return model
    path = pull(name, root)
    state = checkpoint.clean(untrusted.read(path), str(path))
    # The authors trained OpenCLIP's ViT-B-32. Its activation is GELU, so no config says QuickGELU.
    config = checkpoint.infer_config(state, str(path))
    return architecture.from_config(config, state, str(path), name)


def from_pretrained(
    repo_or_dir: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> ClipagModel:
    """Load a Hub repository, or a folder with the same files, on the CPU.

    Args:
        repo_or_dir, revision, cache_dir, token: as for `ClipagModel.from_pretrained`.

    Raises:
        ClipagError: it cannot be fetched, or its files are not a model of this package or of
            OpenCLIP.
    """
    config_path, weights_path = _repository(repo_or_dir, revision, cache_dir, token)
    config = _read_config(config_path)
    state = checkpoint.clean(untrusted.read(weights_path), str(weights_path))
    what = str(weights_path)
    if config_path.name == OPEN_CLIP_CONFIG:
        settings = config.get("preprocess_cfg") or {}
        preprocessing = architecture.read_preprocessing(settings, repo_or_dir)
        name = str(config.get("name", repo_or_dir))
        model = architecture.from_config(config["model_cfg"], state, what, name)
        model.preprocessing = preprocessing
        return model
    return _embedded_model(config["model_cfg"], state, what, str(config.get("name")))


def _embedded_model(
    config: dict[str, Any], state: Mapping[str, Tensor], what: str, name: str
) -> ClipagModel:
    """Build an embedded model from its `model_cfg` and its weights.

    Raises:
        ClipagError: the config is impossible, or the weights do not fit it.
    """
    check_config(config, what)
    # Compare shapes before memory is allocated: a hostile config may ask for more than there is.
    with torch.device("meta"), draw_nothing():
        shapes = mini.build_model(config, name).state_dict()
    architecture.check_tensors(shapes, state, what)
    with draw_nothing():
        model = mini.build_model(config, name)
    architecture.load_weights(model, state, what)
    model.visual.tower.to(memory_format=torch.channels_last)
    return model


def _repository(
    repo_or_dir: str,
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | bool | None,
) -> tuple[Path, Path]:
    """Return the config and the weights file of a folder or a Hub repository."""
    folder = Path(repo_or_dir).expanduser()
    if folder.is_dir() and revision is not None:
        raise ClipagError(
            f"{folder} is a folder, which has no revision {revision!r}: leave `revision` out."
        )

    def fetch(filenames: tuple[str, ...]) -> Path | None:
        """Return the path of the first file that there is."""
        if folder.is_dir():
            paths = (folder / filename for filename in filenames)
            return next((path for path in paths if path.is_file()), None)
        # What is in the cache needs no network. Asking for another name first would.
        cached = {f for f in filenames if download.is_cached(repo_or_dir, f, cache_dir, revision)}
        for filename in sorted(filenames, key=lambda filename: filename not in cached):
            if path := download.hub_file(repo_or_dir, filename, revision, cache_dir, token):
                return path
        return None

    config = fetch((OPEN_CLIP_CONFIG, MINI_CONFIG))
    if config is None:
        raise ClipagError(f"{repo_or_dir} has no {OPEN_CLIP_CONFIG}: choose an OpenCLIP model.")
    if config.name == MINI_CONFIG and "clipag" not in _read_config(config):
        # transformers has a file of this name in many OpenCLIP repositories.
        config = fetch((OPEN_CLIP_CONFIG,))
        if config is None:
            raise ClipagError(
                f"{repo_or_dir} is for another library: choose a repository with "
                f"{OPEN_CLIP_CONFIG}."
            )
    candidates = WEIGHTS if config.name == OPEN_CLIP_CONFIG else (MINI_WEIGHTS,)
    weights = fetch(candidates)
    if weights is None:
        raise ClipagError(f"{repo_or_dir} has no weights: expected {' or '.join(candidates)}.")
    return config, weights


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ClipagError(f"{path} is not valid JSON: fetch it again.") from error
    shape = config.get("model_cfg") if isinstance(config, dict) else None
    if path.name == OPEN_CLIP_CONFIG or (isinstance(config, dict) and "clipag" in config):
        parts = ("vision_cfg", "text_cfg")
        if not isinstance(shape, dict) or not all(isinstance(shape.get(p), dict) for p in parts):
            raise ClipagError(f"{path} has no model_cfg with vision_cfg and text_cfg in it.")
    if not isinstance(config, dict):
        raise ClipagError(f"{path} holds {type(config).__name__}, not a config.")
    return config
