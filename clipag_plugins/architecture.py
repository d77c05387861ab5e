"""From a state dict or an open_clip config to a model, checked tensor by tensor."""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .base import CLIP_MEAN, CLIP_STD, ClipagModel, ImageTower, TwoTowers
from .errors import ClipagError
from .vit import CLIP

# What OpenAI's files hold beside the weights.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
# Heads of 64 everywhere but in open_clip's H, g and bigG, whose widths nothing else has.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
# A config with other settings is for open_clip to build.
PLAIN = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
# Far beyond any CLIP: a config that asks for more asks for all memory there is.
LARGEST, DEEPEST = 1_000_000, 200


def from_state(
    state: Mapping[str, Tensor], what: str, name: str = "CLIP", quick_gelu: bool | None = None
) -> ClipagModel:
    """Build the model that a state dict in OpenAI's names is of.

    Args:
        state: the tensors.
        what: what messages call it, such as the file's path.
        name: what the model will be called.
        quick_gelu: the activation where nothing in the state dict tells; None assumes
            open_clip's usual GELU, with a warning.

    Raises:
        ClipagError: it is not a CLIP's, or a tensor is of the wrong shape or not finite.
    """
    hint = _activation(state)
    state = clean(state)
    config = infer_config(state, what)
    if hint is None and quick_gelu is None:
        warnings.warn(
            f"{what} does not tell its activation: GELU is assumed, as open_clip's models have; "
            "weights of OpenAI's want QuickGELU and should come as OpenAI's own .pt file.",
            stacklevel=2,
        )
    if quick_gelu if hint is None else hint:
        config["quick_gelu"] = True
    return from_config(config, state, what, name)


def clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what is no weight, and the prefix that data-parallel training adds."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(())
    return {
        key: value
        for key, value in state.items()
        if key not in OPENAI_EXTRAS and not key.endswith("attn_mask")
    }


def _activation(state: Mapping[str, Tensor]) -> bool | None:
    """Say whether a state dict wants QuickGELU; None where nothing in it tells.

    Those of this package say so. OpenAI's files hold three numbers beside the weights, or mix
    half and full precision. Else the order tells whose code wrote it: OpenAI's blocks define
    their attention before their first norm, open_clip's after. Sorted names, as in
    `.safetensors`, tell nothing: there the bias comes before the weight.
    """
    metadata = getattr(state, "_metadata", None)
    own = metadata.get("") if isinstance(metadata, dict) else None
    if isinstance(own, dict) and "quick_gelu" in own:
        return bool(own["quick_gelu"])
    floats = {value.dtype for value in state.values() if value.is_floating_point()}
    if all(key in state for key in OPENAI_EXTRAS) or floats == {torch.half, torch.float}:
        return True
    block = "transformer.resblocks.0."
    parts = [key.rpartition(block)[2] for key in state if block in key]
    if parts[:2] == ["attn.in_proj_weight", "attn.in_proj_bias"]:
        return True
    return False if parts[:2] == ["ln_1.weight", "ln_1.bias"] else None


def infer_config(state: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    """Read the architecture off the shapes, as an open_clip `model_cfg`."""

    def shape(key: str, dimensions: int) -> tuple[int, ...]:
        if key not in state:
            raise ClipagError(f"{what} is of another architecture than CLIP: it has no {key!r}.")
        if state[key].ndim != dimensions or 0 in state[key].shape:
            raise ClipagError(
                f"{what} is of another architecture than CLIP: {key} is {tuple(state[key].shape)}."
            )
        return tuple(state[key].shape)

    text_width, embed_dim = shape("text_projection", 2)
    context_length, _ = shape("positional_embedding", 2)
    vocab_size, _ = shape("token_embedding.weight", 2)
    text: dict[str, Any] = {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": text_width,
        "heads": max(1, text_width // 64),
        "layers": _count(state, r"transformer\.resblocks\.(\d+)\."),
    }
    if "visual.layer1.0.conv1.weight" in state:
        stem = shape("visual.conv1.weight", 4)[0]
        positions, _ = shape("visual.attnpool.positional_embedding", 2)
        vision: dict[str, Any] = {
            "image_size": 32 * round((positions - 1) ** 0.5),
            "layers": [_count(state, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)],
            "width": 2 * stem,
        }
    else:
        width, _, patch, _ = shape("visual.conv1.weight", 4)
        positions, _ = shape("visual.positional_embedding", 2)
        mlp_width, _ = shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)
        vision = {
            "image_size": patch * round((positions - 1) ** 0.5),
            "layers": _count(state, r"visual\.transformer\.resblocks\.(\d+)\."),
            "width": width,
            "patch_size": patch,
        }
        if width in HEAD_WIDTHS:
            vision["head_width"] = HEAD_WIDTHS[width]
        if mlp_width != 4 * width:
            # Half a unit more, since the product is cut to a whole number again.
            vision["mlp_ratio"] = (mlp_width + 0.5) / width
        text_mlp, _ = shape("transformer.resblocks.0.mlp.c_fc.weight", 2)
        if text_mlp != 4 * text_width:
            text["mlp_ratio"] = (text_mlp + 0.5) / text_width
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}


def _count(names: Iterable[str], pattern: str) -> int:
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})


def from_config(
    config: dict[str, Any], state: Mapping[str, Tensor], what: str, name: str
) -> ClipagModel:
    """Build the model of an open_clip `model_cfg` and fill it.

    Raises:
        ClipagError: the config makes no CLIP that this package can guide with, or the
            state dict is not of that architecture.
    """
    try:
        check_config(config, what)
        if _is_plain(config):
            model: ClipagModel = _plain(config, name)
        else:
            # Shapes first: a config may ask for more memory than there is.
            with torch.device("meta"):
                shapes = OpenClip(config, name).weights()
            check_tensors(shapes, state, what)
            model = OpenClip(config, name)
    except ClipagError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, ArithmeticError,
            RuntimeError) as error:  # fmt: skip
        raise ClipagError(
            f"The architecture of {what} is not one that open_clip knows: {error}."
        ) from error
    if isinstance(model, OpenClip):
        model.fill(state, what)
    else:
        fill(model, state, what)
    return model


def check_preprocessing(config: Any, what: str) -> None:
    """Refuse models that are fed otherwise than with CLIP's mean and standard deviation."""
    for key, ours in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
        try:
            theirs = config.get(key) or ours
            same = all(abs(a - b) <= 1e-3 for a, b in zip(theirs, ours, strict=True))
        except (AttributeError, TypeError, ValueError) as error:
            raise ClipagError(
                f"The preprocess_cfg of {what} holds no mean and std of colours: fetch it again."
            ) from error
        if not same:
            raise ClipagError(
                f"{what} wants its images with {key} {theirs}, but guidance feeds every model "
                f"CLIP's {ours}: choose a model with CLIP's preprocessing."
            )


def check_config(config: dict[str, Any], what: str) -> None:
    """Refuse a config that asks for the network, for other tokens or for all memory."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if text.get("hf_model_name"):
        raise ClipagError(
            f"The text tower of {what} is {text['hf_model_name']!r} from transformers: only "
            "CLIP's own text transformer is supported."
        )
    if ":" in str(vision.get("timm_model_name")):
        raise ClipagError(f"{what} takes its image tower from elsewhere: choose another model.")
    words, positions = text.get("vocab_size", 49408), text.get("context_length", 77)
    if not isinstance(words, int):
        raise ClipagError(f"{what} has the impossible setting vocab_size = {words!r:.40}.")
    other_tokens = words > 49408 or ("hf_tokenizer_name" in text and words != 49408)
    if "init_logit_bias" in config or other_tokens or positions != 77:
        raise ClipagError(
            f"{what} is not trained on CLIP's tokens, 77 a text, and CLIP's loss: choose a CLIP."
        )
    for part in (config, vision, text):
        for key, value in part.items():
            for number in value if isinstance(value, list | tuple) else [value]:
                most = DEEPEST if key in ("layers", "depths") else LARGEST
                if isinstance(number, int | float) and not 0 <= number <= most:
                    raise ClipagError(f"{what} has the impossible setting {key} = {value}.")


def _is_plain(config: dict[str, Any]) -> bool:
    vision, text = config["vision_cfg"], config["text_cfg"]
    return (
        config.keys() <= PLAIN[""]
        and vision.keys() <= PLAIN["vision_cfg"]
        and text.keys() <= PLAIN["text_cfg"]
        and isinstance(vision.get("layers", 12), int)
    )


def _plain(config: dict[str, Any], name: str) -> CLIP:
    vision, text = config["vision_cfg"], config["text_cfg"]
    width, text_width = vision.get("width", 768), text.get("width", 512)
    with torch.device("meta"):  # shapes alone: the state dict brings the memory
        return CLIP(
            config["embed_dim"],
            vision.get("image_size", 224),
            vision.get("layers", 12),
            width,
            vision.get("patch_size", 16),
            text.get("context_length", 77),
            text.get("vocab_size", 49408),
            text_width,
            text.get("heads", 8),
            text.get("layers", 12),
            vision_heads=max(1, width // vision.get("head_width", 64)),
            vision_mlp_width=int(width * vision.get("mlp_ratio", 4)),
            transformer_mlp_width=int(text_width * text.get("mlp_ratio", 4)),
            quick_gelu=config.get("quick_gelu", False),
            name=name,
            config=config,
        )


class OpenClip(TwoTowers):
    """Any other architecture of open_clip: its ResNets, ConvNeXts and the rest.

    Their parts are reachable as `model.visual.…` and `model.…`, in open_clip's own layout.
    """

    def __init__(self, config: dict[str, Any], name: str):
        import open_clip

        settings = {key: value for key, value in config.items() if key != "custom_text"}
        vision = {**settings["vision_cfg"], "timm_model_pretrained": False}
        settings["vision_cfg"] = vision
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        clip = kind(**settings)
        side = vision.get("image_size", 224)
        tower = ImageTower(clip.visual, side if isinstance(side, int) else side[0],
                           config["embed_dim"])  # fmt: skip
        super().__init__(name, tower, clip, 0.0, clip.context_length, clip.vocab_size, config)
        # Each weight has one home: the text half keeps neither the image tower nor the scale.
        del clip.visual, clip.logit_scale

    def encode_text(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, of (B, 77) integer tokens."""
        embedding: Tensor = self.text.encode_text(text)  # type: ignore[operator]
        return embedding

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict under open_clip's names."""
        visual = self.visual.tower.state_dict(prefix="visual.")
        return {"logit_scale": self.logit_scale.detach(), **visual, **self.text.state_dict()}

    def fill(self, state: Mapping[str, Tensor], what: str) -> None:
        """Load a state dict in open_clip's names, checked."""
        check_tensors(self.weights(), state, what)
        ours = {
            f"visual.tower.{key.removeprefix('visual.')}"
            if key.startswith("visual.")
            else key if key == "logit_scale" else f"text.{key}": value
            for key, value in state.items()
        }  # fmt: skip
        self.load_state_dict(ours)


def fill(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict after checking that every name, shape and value is as it should be."""
    expected = module.state_dict()
    check_tensors(expected, state, what)
    # Assigned, not copied: a module on the meta device has no memory to copy into.
    module.load_state_dict(
        {key: value.to(expected[key].dtype) for key, value in state.items()}, assign=True
    )


def check_tensors(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Refuse a state dict whose names, shapes or values are not as they should be."""
    if missing := sorted(expected.keys() ^ state.keys()):
        raise ClipagError(
            f"{what} is of another architecture: {len(missing)} tensors differ in name, "
            f"{missing[0]!r} first."
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise ClipagError(
                f"{what} is of another architecture: {key} is {tuple(state[key].shape)}, "
                f"not {tuple(tensor.shape)}."
            )
        if not torch.isfinite(state[key]).all():
            raise ClipagError(f"{what} is damaged: {key} holds values that are not finite.")
