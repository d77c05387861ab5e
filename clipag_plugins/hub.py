"""Where weights come from: inside the package, or a file. Checked before use."""

import hashlib
import json
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import ClipagError
from .mini import build_towers
from .model import ClipagModel, ImageTower
from .tokenizer import CONTEXT_LENGTH

EMBEDDED = Path(__file__).parent / "weights"
# Whatever the two readers raise on bytes that are no weights.
UNREADABLE = (
    SafetensorError, pickle.UnpicklingError, struct.error, RuntimeError, OSError, EOFError,
    ValueError, KeyError, IndexError, TypeError, AttributeError,
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a named model's weights are: embedded in the package, or a file to be had."""

    embedded: bool
    note: str


MODELS = {
    "clipag-mini": Source(True, "embedded CLIPAG"),
    "clip-mini": Source(True, "embedded vanilla twin of clipag-mini"),
    "ViT-B/32": Source(False, "Zenodo record 10446026, file CLIPAG_ViTB32.pt"),
}


def load(name: str | Path) -> ClipagModel:
    """Load the model of that name, or from that file, on the CPU."""
    source = MODELS.get(str(name))
    if source is not None and source.embedded:
        return _load_embedded(str(name))
    if source is not None:
        raise ClipagError(
            f"{name} is not inside the package: fetch {source.note} and give its path as the "
            "model; clipag-mini works without a download."
        )
    path = Path(name)
    if path.is_file():
        return _load_open_clip(path)
    raise ClipagError(
        f"There is no model or weights file called {str(name)!r}; known are {', '.join(MODELS)}."
    )


def _load_embedded(name: str) -> ClipagModel:
    config = embedded_config()
    shape, entry = config["model_cfg"], config["models"][name]
    image_tower, text_tower = build_towers(shape)
    for tower, file in ((image_tower, entry["image"]), (text_tower, config["text"])):
        path = embedded_file(file)
        _fill(tower, _read(path), path)
    text = shape["text_cfg"]
    return ClipagModel(
        name,
        ImageTower(
            image_tower.to(memory_format=torch.channels_last),
            shape["vision_cfg"]["image_size"],
            shape["embed_dim"],
        ),
        text_tower,
        entry["logit_scale"],
        text["context_length"],
        text["vocab_size"],
    )


def embedded_file(entry: dict[str, str]) -> Path:
    """Return the path of a file of the package, after checking its sha256."""
    path = EMBEDDED / entry["name"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != entry["sha256"]:
        raise ClipagError(f"{path} is damaged (sha256 {digest[:12]}…): reinstall clipag-plugins.")
    return path


def embedded_config() -> dict[str, Any]:
    """Read the config of the embedded models: their shape, files and checksums."""
    config: dict[str, Any] = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    return config


def _load_open_clip(path: Path) -> ClipagModel:
    import open_clip

    state = _read(path)
    clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    _fill(clip, state, path)
    visual = clip.visual
    return ClipagModel(
        path.name,
        ImageTower(visual, visual.image_size[0], visual.output_dim),
        _TextTower(clip),
        clip.logit_scale.item(),
        CONTEXT_LENGTH,
        clip.vocab_size,
    )


class _TextTower(nn.Module):
    """The text half of an open_clip model."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        embedding: Tensor = self.clip.encode_text(tokens)  # type: ignore[operator]
        return embedding


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running any code that the file may hold."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ClipagError(
            f"{path} is not a whole .safetensors or torch state dict: fetch it again."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ClipagError(f"{path} holds something other than a state dict of tensors.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _fill(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict after checking that every name, shape and value is as it should be."""
    expected = module.state_dict()
    if missing := sorted(expected.keys() ^ state.keys()):
        raise ClipagError(
            f"{path} is of another architecture: {len(missing)} tensors differ in name, "
            f"{missing[0]!r} first."
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise ClipagError(
                f"{path} is of another architecture: {key} is {tuple(state[key].shape)}, "
                f"not {tuple(tensor.shape)}."
            )
        if not torch.isfinite(state[key]).all():
            raise ClipagError(f"{path} is damaged: {key} holds values that are not finite.")
    module.load_state_dict({k: v.to(expected[k].dtype) for k, v in state.items()})
