"""Load and save priors and decoders: .safetensors in 8 bits, with their shape and their model."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..base import ClipagModel
from ..embedded import checked_path, read_config
from ..errors import ClipagError
from ..files import write_beside
from ..quantization import dequantize, quantize
from .autoregressive import AutoregressivePrior
from .decoder import Decoder, DecoderShape
from .diffusion import DiffusionPrior
from .network import KINDS, Prior, Shape

# What safetensors, json and torch raise for files that are damaged or something else.
UNREADABLE = (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError)
PRIOR, DECODER = "prior", "decoder"  # keys of the shapes in the files' metadata

Network = TypeVar("Network", bound=nn.Module)


def build(shape: Shape) -> Prior:
    """Build a prior, untrained."""
    return DiffusionPrior(shape) if shape.kind == "diffusion" else AutoregressivePrior(shape)


def fingerprint(model: ClipagModel) -> str:
    """Return a digest of a model's image tower: embeddings of other towers mean something else."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.visual.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_prior(prior: Prior, model: ClipagModel, path: Path) -> None:
    """Write a prior of a model as .safetensors, in 8 bits."""
    _save(prior, {PRIOR: json.dumps(vars(prior.shape))}, model, path)


def save_decoder(decoder: Decoder, model: ClipagModel, path: Path) -> None:
    """Write a decoder of a model's embeddings as .safetensors, in 8 bits."""
    _save(decoder, {DECODER: json.dumps(vars(decoder.shape))}, model, path)


def _save(network: nn.Module, shape: Mapping[str, str], model: ClipagModel, path: Path) -> None:
    state = {name: value.contiguous() for name, value in quantize(network.state_dict()).items()}
    metadata = {**shape, "model": model.name, "tower": fingerprint(model)}
    with write_beside(path) as temporary:
        save_file(state, temporary, metadata)


def load_prior(path: str | Path, model: ClipagModel) -> Prior:
    """Load a prior, frozen, in float32, on the model's device.

    Args:
        path: a file that `clipag prior` wrote, or the kind of a prior that comes with the package.
        model: whose embeddings it draws.

    Raises:
        ClipagError: there is no such prior, it is not a prior, or it is another model's.
    """
    path = _embedded_path(str(path), model) if str(path) in KINDS else Path(path)
    if not path.is_file():
        raise ClipagError(
            f"`prior` is {str(path)!r}, and there is no such file: train one by clipag prior."
        )
    return _load(path, PRIOR, lambda shape: build(Shape(**shape)), model)


def _embedded_path(kind: str, model: ClipagModel) -> Path:
    """Return the file of the prior of a kind that comes with the package, after checking it."""
    entry = read_config().get("priors", {}).get(kind)
    if entry is None:
        raise ClipagError(
            f"No {kind} prior comes with this package: train one by clipag prior, and name its "
            "file."
        )
    if model.name != entry["model"]:
        raise ClipagError(
            f"The {kind} prior that comes with this package is {entry['model']}'s, not "
            f"{model.name}'s: guide by {entry['model']}, or train one by clipag prior."
        )
    return checked_path(entry)


def load_decoder(path: str | Path, model: ClipagModel) -> Decoder:
    """Load a decoder that `clipag decoder` trained, frozen, in float32, on the model's device.

    Raises:
        ClipagError: there is no such file, it is not a decoder, or it is another model's; diffusers
            is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipagError(
            f"`decoder` is {str(path)!r}, and there is no such file: train one by clipag decoder."
        )

    def build_decoder(shape: dict[str, Any]) -> Decoder:
        return Decoder(DecoderShape(**{**shape, "channels": tuple(shape["channels"])}))

    return _load(path, DECODER, build_decoder, model)


def _load(
    path: Path, kind: str, build_network: Callable[[dict[str, Any]], Network], model: ClipagModel
) -> Network:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Without memory until the file's tensors fit: it may claim any shape.
            with torch.device("meta"):
                network = build_network(json.loads(metadata[kind]))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state = {key: value.float() for key, value in dequantize(state, str(path)).items()}
        network.load_state_dict(state, assign=True)
    except UNREADABLE as error:
        raise ClipagError(f"{path} is not a {kind}: train one by clipag {kind}.") from error
    if metadata.get("tower") != fingerprint(model):
        raise ClipagError(
            f"{path} was trained for another image tower than that of {model.name}: draw with the "
            "model that it was trained for, or train it again."
        )
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise ClipagError(f"{path} is damaged: it holds values that are not finite.")
    return network.to(model.device).eval().requires_grad_(False)
