"""Find a CLIP's weights in what training code saves, and read from them what the model is.

Public checkpoints hold the same tensors under many names, behind the prefixes of trainers and of
torch's wrappers.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import ClipagError
from .registry import MODELS

# Numbers that OpenAI's files hold beside the weights.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
# Modules that torch wraps around others: data-parallel and compiled ones.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Heads are 64 wide, except in open_clip's H, g and bigG. No other model has their widths.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
TOKENS = "token_embedding.weight"  # every text tower has it
FIRST_OF_MINI = "layers.0.weight"  # in the image tower of an embedded model
# A tensor of an image tower that has no module around it, as `model.visual.state_dict()` gives it.
BARE_TOWER = re.compile(r"(.*?)(?:conv1\.weight|tower\.layers\.0\.weight)")


def clean(state: Mapping[str, Tensor], what: str = "state dict") -> dict[str, Tensor]:
    """Remove entries that are not weights, and the prefixes that training code adds.

    Torch's wrappers (`module.`, `_orig_mod.`) are removed from inside names too. What is outside
    the prefix of the CLIP (`model.`, `clip_model.`, …), such as a classifier, is removed.

    Args:
        state: the tensors.
        what: how messages name the state dict.

    Raises:
        ClipagError: the state dict holds several CLIPs.
    """
    state = {
        ".".join(part for part in key.split(".") if part not in WRAPPERS): value
        for key, value in state.items()
    }
    prefix = _prefix(state, what)
    state = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(())
    return {
        key: value
        for key, value in state.items()
        if key not in OPENAI_EXTRAS and not key.endswith("attn_mask")
    }


def _prefix(names: Iterable[str], what: str) -> str:
    """Return what precedes `visual.` in the names; for a bare image tower, its first weight.

    Raises:
        ClipagError: several CLIPs have different prefixes.
    """
    parts = [(name, f".{name}".find(".visual.")) for name in names]
    prefixes = {name[:start] for name, start in parts if start >= 0}
    if not prefixes:
        towers = [match[1] for match in map(BARE_TOWER.fullmatch, names) if match]
        return min(towers, key=len, default="")
    if len(prefixes) == 1 or "" in prefixes:
        return min(prefixes)
    with_text = {p for p in prefixes for n in names if n.startswith(p) and n.endswith(TOKENS)}
    if len(with_text) == 1:
        return with_text.pop()
    several = " and ".join(sorted(prefixes))
    raise ClipagError(f"{what} holds several CLIPs, {several}: save one of them alone.")


def is_embedded_model(state: Mapping[str, Tensor]) -> bool:
    """Return whether a cleaned state dict is that of an embedded model (`mini.MiniClip`)."""
    towers = ("visual.tower.layers.0.weight", "visual.tower.coarse.layers.0.weight")
    return any(key in state for key in towers) and "text.projection.weight" in state


def open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the towers of `architecture.OpenClip` and of open_clip's `CustomTextCLIP`."""
    return {
        re.sub(r"^(text\.)+", "", re.sub(r"^visual\.tower\.", "visual.", key)): value
        for key, value in state.items()
    }


def bare_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights of an image tower without a text tower; None if it is something else.

    Args:
        state: a cleaned state dict.

    Returns:
        The weights, named as the tower itself names them.
    """
    if any(key.endswith(TOKENS) for key in state):
        return None
    tower = {re.sub(r"^(visual\.)?(tower\.)?", "", key): value for key, value in state.items()}
    is_of_clip = tower.keys() & {"class_embedding", "attnpool.positional_embedding", FIRST_OF_MINI}
    return tower if is_of_clip or any(key.startswith("visual.") for key in state) else None


def activation(state: Mapping[str, Tensor]) -> bool | None:
    """Return whether a state dict needs QuickGELU, or None if nothing in it tells.

    State dicts of this package record it in their metadata. OpenAI's files hold three numbers
    beside the weights, or mix half and full precision. Otherwise the order of the names tells:
    OpenAI's blocks define attention before the first norm, open_clip's after it. Sorted names, as
    in `.safetensors` files, do not tell: they can be recognised by a bias before its weight.
    """
    metadata = getattr(state, "_metadata", None)
    for of_module in metadata.values() if isinstance(metadata, dict) else ():
        if isinstance(of_module, dict) and "quick_gelu" in of_module:
            return bool(of_module["quick_gelu"])
    floats = {value.dtype for value in state.values() if value.is_floating_point()}
    if all(key in state for key in OPENAI_EXTRAS) or floats == {torch.half, torch.float}:
        return True
    block = "transformer.resblocks.0."
    parts = [key.rpartition(block)[2] for key in state if block in key]
    if parts[:2] == ["attn.in_proj_weight", "attn.in_proj_bias"]:
        return True
    return False if parts[:2] == ["ln_1.weight", "ln_1.bias"] else None


def infer_config(state: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    """Infer the architecture from the tensors' shapes; return it as an open_clip `model_cfg`.

    Raises:
        ClipagError: the state dict is not that of a CLIP with both towers, or does not tell its
            architecture.
    """
    _require_both_towers(state, what)
    text_width, embed_dim = _shape(state, what, "text_projection", 2)
    context_length, _ = _shape(state, what, "positional_embedding", 2)
    vocab_size, _ = _shape(state, what, "token_embedding.weight", 2)
    text: dict[str, Any] = {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": text_width,
        "heads": max(1, text_width // 64),
        "layers": _count(state, r"transformer\.resblocks\.(\d+)\."),
    }
    vision = _vision(state, what)
    if "patch_size" in vision:
        text_mlp, _ = _shape(state, what, "transformer.resblocks.0.mlp.c_fc.weight", 2)
        if text_mlp != 4 * text_width:
            text["mlp_ratio"] = (text_mlp + 0.5) / text_width
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}


def _shape(state: Mapping[str, Tensor], what: str, key: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a tensor that every CLIP has.

    Raises:
        ClipagError: it is missing, or has another number of dimensions.
    """
    if key not in state:
        raise ClipagError(f"{what} has another architecture than CLIP: it has no {key!r}.")
    if state[key].ndim != dimensions or 0 in state[key].shape:
        raise ClipagError(
            f"{what} has another architecture than CLIP: {key} is {tuple(state[key].shape)}."
        )
    return tuple(state[key].shape)


def _vision(state: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    """Infer an open_clip `vision_cfg`.

    Raises:
        ClipagError: as for `_shape`.
    """
    if "visual.layer1.0.conv1.weight" in state:
        stem = _shape(state, what, "visual.conv1.weight", 4)[0]
        positions, _ = _shape(state, what, "visual.attnpool.positional_embedding", 2)
        return {
            "image_size": 32 * round((positions - 1) ** 0.5),
            "layers": [_count(state, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)],
            "width": 2 * stem,
        }
    width, _, patch, _ = _shape(state, what, "visual.conv1.weight", 4)
    positions, _ = _shape(state, what, "visual.positional_embedding", 2)
    mlp_width, _ = _shape(state, what, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)
    vision = {
        "image_size": patch * round((positions - 1) ** 0.5),
        "layers": _count(state, r"visual\.transformer\.resblocks\.(\d+)\."),
        "width": width,
        "patch_size": patch,
    }
    if width in HEAD_WIDTHS:
        vision["head_width"] = HEAD_WIDTHS[width]
    if mlp_width != 4 * width:
        # open_clip truncates width * mlp_ratio; + 0.5 survives the round trip.
        vision["mlp_ratio"] = (mlp_width + 0.5) / width
    return vision


def _require_both_towers(state: Mapping[str, Tensor], what: str) -> None:
    """Say what a state dict is, if its architecture cannot be told from its tensors.

    Raises:
        ClipagError: it cannot.
    """
    if any(key.startswith(("text_model.", "vision_model.")) for key in state):
        raise ClipagError(
            f"{what} has the layout of transformers: choose the same weights in OpenAI's or "
            "OpenCLIP's layout."
        )
    tower = bare_tower(state)
    if tower is not None:
        models = ", ".join(_models_with(tower, what)) or "the CLIP that it was fine-tuned from"
        raise ClipagError(
            f"{what} is an image tower without a text tower: `clipag convert` adds one, that of "
            f"the CLIP that the tower was fine-tuned from. Name it as `text_from`: {models}."
        )
    if TOKENS in state and not any(key.startswith("visual.") for key in state):
        raise ClipagError(f"{what} is a text tower without an image tower: choose a whole CLIP.")
    if TOKENS in state and "visual.conv1.weight" not in state:
        raise ClipagError(
            f"{what} does not tell the architecture of its image tower: put it into a folder with "
            "its open_clip_config.json, under the name open_clip_pytorch_model.bin or "
            "open_clip_model.safetensors, and name the folder."
        )


def _models_with(tower: Mapping[str, Tensor], what: str) -> list[str]:
    """Return the names of vanilla models with an image tower of the same shape.

    Raises:
        ClipagError: as for `_shape`.
    """
    import open_clip

    if FIRST_OF_MINI in tower:
        return [name for name, source in MODELS.items() if source.embedded]
    vision = _vision({f"visual.{key}": value for key, value in tower.items()}, what)
    names = []
    for name, source in MODELS.items():
        config = open_clip.get_model_config(source.architecture) or {"vision_cfg": {}}
        theirs = config["vision_cfg"]
        if name.startswith("vanilla:") and all(theirs.get(k) == vision[k] for k in vision):
            names.append(name)
    return names


def _count(names: Iterable[str], pattern: str) -> int:
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})
