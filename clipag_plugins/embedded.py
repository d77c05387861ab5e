"""The models inside the package: their files, checked, and how they are put together."""

import json
from pathlib import Path
from typing import Any

import torch

from . import architecture, download, mini, untrusted
from .base import ClipagModel
from .errors import ClipagError

FOLDER = Path(__file__).parent / "weights"


def load(name: str) -> ClipagModel:
    """Load an embedded model on the CPU: one of the names under "models" in weights/config.json.

    Raises:
        ClipagError: a file of the package is damaged.
    """
    config = read_config()
    entry = config["models"][name]
    model = mini.build_model(config["model_cfg"], name, entry["logit_scale"])
    image, text, memory = (
        checked_path(f) for f in (entry["image"], config["text"], config["memory"])
    )
    architecture.fill(model.visual.tower, untrusted.read(image), str(image))
    # Both models share the text tower and the memory's keys; each has its own values.
    both = untrusted.read(memory)
    of_this_model = {"memory.keys": both["keys"], "memory.values": both[name]}
    architecture.fill(model.text, {**untrusted.read(text), **of_this_model}, str(text))
    model.visual.tower.to(memory_format=torch.channels_last)
    return model


def checked_path(entry: dict[str, str]) -> Path:
    """Return the path of a file in weights/ after checking its sha256."""
    path = FOLDER / entry["name"]
    digest = download.sha256(path)
    if digest != entry["sha256"]:
        raise ClipagError(f"{path} is damaged (sha256 {digest[:12]}…): reinstall clipag-plugins.")
    return path


def read_config() -> dict[str, Any]:
    """Read the config of the embedded models: their shape, files and checksums."""
    config: dict[str, Any] = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    return config
