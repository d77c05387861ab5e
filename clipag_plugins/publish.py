"""Save models: to a folder, to the Hugging Face Hub, or as one .safetensors file."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from . import architecture, checkpoint, download, untrusted
from .base import CLIP_MEAN, CLIP_STD, ClipagModel
from .errors import ClipagError
from .files import write_beside
from .hub import (
    MINI_CONFIG,
    MINI_WEIGHTS,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    load_model,
    model_from_state,
)
from .mini import MiniClip
from .vit import CLIP


def save_pretrained(model: ClipagModel, folder: Path, repo: str = "OWNER/NAME") -> Path:
    """Write weights, config and model card; return the folder, which is made if it is missing.

    Args:
        model: any model of this package.
        folder: where the files go.
        repo: the Hub repository that the card's example loads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.weights().items()}
    shape = model.config or checkpoint.infer_config(weights, model.name)
    if isinstance(model, CLIP) and model.quick_gelu:
        shape = {**shape, "quick_gelu": True}
    config: dict[str, Any] = {"name": model.name, "model_cfg": shape}
    if isinstance(model, MiniClip):
        config["clipag"] = "mini"
        config_name, weights_name = MINI_CONFIG, MINI_WEIGHTS
    else:
        config["preprocess_cfg"] = {
            "mean": CLIP_MEAN, "std": CLIP_STD, **asdict(model.preprocessing),
        }  # fmt: skip
        config_name, weights_name = OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
    with write_beside(folder / weights_name) as temporary:
        save_file(weights, temporary, {"format": "pt"})
    for filename, text in (
        (config_name, json.dumps(config, indent=2)),
        ("README.md", card(model, repo)),
    ):
        with write_beside(folder / filename) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return folder


def card(model: ClipagModel, repo: str) -> str:
    """Return a model card in the Hub's format, which tells how to load the model from `repo`."""
    source = model.source  # not looked up by name: a folder's config may claim any name
    mini = isinstance(model, MiniClip)
    lines = [
        "---",
        f"library_name: {'clipag-plugins' if mini else 'open_clip'}",
        "pipeline_tag: zero-shot-image-classification",
        *(["license: mit"] if source is not None and source.licence == "MIT" else []),
        "tags:",
        "- clip",
        "- clipag",
        "---",
        f"# {model.name}",
        "",
        f"A CLIP with {sum(w.numel() for w in model.weights().values()) / 1e6:.1f} M parameters, "
        f"embeddings of {model.visual.output_dim}, images of {model.visual.native_size} pixels.",
    ]
    if source is not None:
        lines += [
            "",
            f"- architecture: {source.architecture}",
            f"- threat model: {source.threat_model}",
            f"- licence: {source.licence}",
            f"- cite: {source.citation}",
        ]
    lines += ["", "```python", "import clipag_plugins as clip", ""]
    lines += [f'model = clip.ClipagModel.from_pretrained("{repo}")']
    if not mini:
        lines += ["", "import open_clip", ""]
        lines += [f'model, preprocess = open_clip.create_model_from_pretrained("hf-hub:{repo}")']
    return "\n".join([*lines, "```"])


def push_to_hub(
    model: ClipagModel,
    repo_id: str,
    commit_message: str,
    revision: str | None,
    private: bool,
    create_pr: bool,
    token: str | bool | None,
) -> str:
    """Save to a repository of the Hub and return the commit's address.

    Raises:
        ClipagError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    remedy = "check the connection, and that HF_TOKEN may write there"
    with tempfile.TemporaryDirectory() as temporary, download.hub_errors(repo_id, remedy):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        folder = save_pretrained(model, Path(temporary), repo_id)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit)


def convert(path: Path, out: Path, text_from: str | None = None) -> ClipagModel:
    """Convert a CLIP's checkpoint to `.safetensors` and return the model in it.

    Args:
        path: the checkpoint.
        out: the file to write.
        text_from: for a checkpoint that holds an image tower alone, the model that it was
            fine-tuned from, by any name that `load_model` takes: its text tower is added.

    Raises:
        ClipagError: the file is not a CLIP's checkpoint, or its image tower is not one of the
            model `text_from`.
    """
    state = untrusted.read(path)
    if text_from is None:
        model = model_from_state(state, str(path), path.name)
    else:
        model = _with_text_tower(state, str(path), text_from)
    # A clone: parts of a model may share memory, which the format does not allow.
    weights = {key: value.detach().clone().contiguous() for key, value in model.weights().items()}
    activation = "true" if model.config.get("quick_gelu") else "false"
    with write_beside(out) as temporary:
        save_file(weights, temporary, {"format": "pt", "quick_gelu": activation})
    return model


def _with_text_tower(state: Mapping[str, Tensor], what: str, text_from: str) -> ClipagModel:
    """Return the model `text_from` with another image tower.

    Raises:
        ClipagError: the state dict holds more than an image tower, or another one.
    """
    tower = checkpoint.bare_tower(checkpoint.clean(state, what))
    if tower is None:
        raise ClipagError(f"{what} is not an image tower alone: leave `text_from` out.")
    model = load_model(text_from)
    module = getattr(model.visual, "tower", model.visual)
    architecture.load_weights(module, tower, what)
    return model
