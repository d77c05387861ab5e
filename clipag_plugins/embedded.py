"""Load the models inside the package, and check their files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from . import architecture, download, mini, quantization
from .base import ClipagModel
from .errors import ClipagError
from .streams import draw_nothing

FOLDER = Path(__file__).parent / "weights"


def load(name: str) -> ClipagModel:
    """Load an embedded model on the CPU.

    Args:
        name: a name under "models" in weights/config.json.

    Raises:
        ClipagError: a file of the package is damaged.
    """
    config = read_config()
    entry = config["models"][name]
    image, text = read_weights(entry["image"]), read_weights(config["text"])
    settings, twin = config["model_cfg"], entry.get("coarse", name)
    # The models share the text tower and the memory's keys. Each coarse tower has its own values.
    memory = read_weights(config["memory"])
    text |= {"memory.keys": memory["keys"], "memory.values": memory[twin]}
    if "coarse" in entry:
        # Two towers look at a picture: this model's own, and that of the model named here.
        settings = _two_scale_config(config)
        concepts = read_weights(config["concepts"])
        head = {f"head.{part}": concepts.pop(part) for part in ("weight", "bias")}
        coarse = read_weights(config["models"][twin]["image"])
        image = {f"fine.{key}": value for key, value in (image | head).items()}
        image |= {f"coarse.{key}": value for key, value in coarse.items()}
        text |= _concepts(concepts, memory["keys"])
    with draw_nothing():
        model = mini.build_model(settings, name, entry["logit_scale"])
    architecture.load_weights(model.visual.tower, image, entry["image"]["name"])
    architecture.load_weights(model.text, text, config["text"]["name"])
    model.visual.tower.to(memory_format=torch.channels_last)
    return model


def _concepts(stored: Mapping[str, Tensor], captions: Tensor) -> dict[str, Tensor]:
    """Return the state of `TwoScaleTextTower.concepts`: captions, then names of classes.

    A class is stored once, and has several names. The captions' keys are those of the memory.
    """
    values = torch.cat([stored["captions"], stored["classes"][stored["class_of_name"].long()]])
    keys = torch.cat([captions, stored["names"]])
    return {"concepts.keys": keys, "concepts.values": values}


def read_weights(entry: dict[str, str]) -> dict[str, Tensor]:
    """Read the tensors of a file in weights/, in float32 or float16.

    Args:
        entry: "name" and "sha256", as in weights/config.json.

    Raises:
        ClipagError: the file is damaged.
    """
    path = checked_path(entry)
    return quantization.dequantize(load_file(path), str(path))


def checked_path(entry: dict[str, str]) -> Path:
    """Return the path of a file in weights/ after checking its SHA-256.

    Args:
        entry: "name" and "sha256", as in weights/config.json.

    Raises:
        ClipagError: the file is damaged.
    """
    path = FOLDER / entry["name"]
    digest = download.sha256(path)
    if digest != entry["sha256"]:
        raise ClipagError(f"{path} is damaged (sha256 {digest[:12]}…): reinstall clipag-plugins.")
    return path


def config_for(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the `model_cfg` of an embedded model whose weights are `state`, if they fit one.

    Models may have a memory of any length, or none.
    """
    embedded = read_config()
    is_two_scales = "visual.tower.fine.stem.weight" in state
    config = _two_scale_config(embedded) if is_two_scales else embedded["model_cfg"]
    entries = {"memory": _entries(state, "memory")}
    if is_two_scales:
        entries["concepts"] = _entries(state, "concepts")
    return {**config, "text_cfg": {**config["text_cfg"], **entries}}


def _entries(state: Mapping[str, Tensor], memory: str) -> int:
    keys = state.get(f"text.{memory}.keys")
    return 0 if keys is None or keys.ndim == 0 else keys.shape[0]


def _two_scale_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the `model_cfg` of a model whose coarse tower is that of the other models."""
    coarse: dict[str, Any] = config["model_cfg"]
    vision = {**config["fine_cfg"]["vision_cfg"], "coarse": coarse["vision_cfg"]}
    text = {**coarse["text_cfg"], **config["fine_cfg"]["text_cfg"]}
    return {"embed_dim": 2 * coarse["embed_dim"], "vision_cfg": vision, "text_cfg": text}


def read_config() -> dict[str, Any]:
    """Read weights/config.json: the embedded models' architecture, files and checksums."""
    config: dict[str, Any] = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    return config
