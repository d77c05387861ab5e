"""Build models from state dicts and open_clip configs; check every tensor first."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .base import CLIP_MEAN, CLIP_STD, ClipagModel, ImageTower, Preprocessing, TwoTowers
from .checkpoint import activation, clean, infer_config, open_clip_names
from .errors import ClipagError
from .model_config import DEEPEST, LARGEST_SIDE, Settings, check_config
from .streams import draw_nothing
from .transformer import initialize_text_parameters
from .vit import CLIP, Shape

# `vit.CLIP` covers these settings. A config with any other is built by open_clip.
PLAIN = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
# Settings of a `preprocess_cfg` that say how a picture becomes a square.
PREPROCESSING: dict[str, tuple[str, ...]] = {
    "resize_mode": ("shortest", "longest", "squash"),
    "interpolation": ("bicubic", "bilinear", "random"),
}
# What open_clip and timm raise on configs that they do not know.
OPEN_CLIP_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


def from_state(
    state: Mapping[str, Tensor], what: str, name: str = "CLIP", quick_gelu: bool | None = None
) -> ClipagModel:
    """Build a model from a state dict in OpenAI's names.

    Args:
        state: the tensors.
        what: how messages name the state dict, such as the file's path.
        name: the model's name.
        quick_gelu: the activation to use if the state dict does not tell; None assumes
            open_clip's usual GELU, with a warning.

    Raises:
        ClipagError: the state dict is not a CLIP's, or a tensor has the wrong shape or holds
            values that are not finite.
    """
    hint = activation(state)
    state = open_clip_names(clean(state, what))
    config = infer_config(state, what)
    if hint is None and quick_gelu is None:
        warnings.warn(
            f"{what} does not say which activation it was trained with: GELU is assumed, which "
            "open_clip's models use. OpenAI's weights need QuickGELU: load them from OpenAI's own "
            ".pt file.",
            stacklevel=2,
        )
    if quick_gelu if hint is None else hint:
        config["quick_gelu"] = True
    return from_config(config, state, what, name)


def from_config(
    config: dict[str, Any], state: Mapping[str, Tensor], what: str, name: str
) -> ClipagModel:
    """Build a model from an open_clip `model_cfg` and load a state dict in open_clip's names.

    Args:
        config: the `model_cfg`, with `vision_cfg` and `text_cfg`.
        state: the tensors, after `clean`.
        what: how messages name the state dict, such as the file's path.
        name: the model's name.

    Raises:
        ClipagError: this package cannot guide with a model of this config, or the state dict has
            another architecture.
    """
    check_config(config, what)
    if _is_plain(config):
        plain = _plain(config, what, name)
        load_weights(plain, state, what)
        return plain
    # Compare shapes before memory is allocated: a hostile config may ask for more than there is.
    with torch.device("meta"), draw_nothing():
        shapes = OpenClip(config, name, what).weights()
    check_tensors(shapes, state, what)
    model = OpenClip(config, name, what)
    model.load_weights(state, what)
    return model


def read_preprocessing(config: Any, what: str) -> Preprocessing:
    """Return what a `preprocess_cfg` says beside CLIP's mean and standard deviation.

    Raises:
        ClipagError: the model needs another mean or deviation, or the config is malformed.
    """
    for key, ours in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
        try:
            theirs = config.get(key) or ours
            same = all(abs(a - b) <= 1e-3 for a, b in zip(theirs, ours, strict=True))
        except (AttributeError, TypeError, ValueError) as error:
            raise ClipagError(
                f"The preprocess_cfg of {what} has no mean and std of 3 colours: fetch it again."
            ) from error
        if not same:
            raise ClipagError(
                f"{what} needs images normalised with {key} {theirs}, but guidance gives every "
                f"model CLIP's {ours}: choose a model with CLIP's preprocessing."
            )
    settings = {}
    for key, choices in PREPROCESSING.items():
        value = config.get(key)
        if value is not None:
            if value not in choices:
                raise Settings(config, what).impossible(key, f"expected {' or '.join(choices)}")
            settings[key] = value
    fill_color = Settings({"fill_color": 0, **config}, what).integer("fill_color", None, 0, 255)
    return Preprocessing(**settings, fill_color=fill_color)


def _is_plain(config: dict[str, Any]) -> bool:
    vision, text = config["vision_cfg"], config["text_cfg"]
    return (
        config.keys() <= PLAIN[""]
        and vision.keys() <= PLAIN["vision_cfg"]
        and text.keys() <= PLAIN["text_cfg"]
        and isinstance(vision.get("layers", 12), int)
    )


def _plain(config: dict[str, Any], what: str, name: str) -> CLIP:
    """Build a vision transformer CLIP, on the meta device: its weights have shapes, no memory."""
    top = Settings(config, what)
    vision, text = Settings(config["vision_cfg"], what), Settings(config["text_cfg"], what)
    width, text_width = vision.integer("width", 768), text.integer("width", 512)
    vision_heads = max(1, width // vision.integer("head_width", 64))
    text_heads = text.integer("heads", 8)
    vision.require_multiple("width", width, vision_heads)
    text.require_multiple("width", text_width, text_heads)
    shape = Shape(
        top.integer("embed_dim"),
        vision.integer("image_size", 224, largest=LARGEST_SIDE),
        vision.integer("layers", 12, largest=DEEPEST),
        width,
        vision.integer("patch_size", 16, largest=LARGEST_SIDE),
        text.integer("context_length", 77),
        text.integer("vocab_size", 49408),
        text_width,
        text_heads,
        text.integer("layers", 12, largest=DEEPEST),
        vision_heads=vision_heads,
        vision_mlp_width=int(width * vision.ratio("mlp_ratio", 4)),
        transformer_mlp_width=int(text_width * text.ratio("mlp_ratio", 4)),
        quick_gelu=top.flag("quick_gelu"),
    )
    with torch.device("meta"), draw_nothing():
        return CLIP.from_shape(shape, name, config)


def _build_with_open_clip(config: Mapping[str, Any], what: str) -> nn.Module:
    """Build a model of open_clip's.

    Raises:
        ClipagError: open_clip cannot.
    """
    import open_clip

    from .resnet import use_openais_names

    settings = {key: value for key, value in config.items() if key != "custom_text"}
    settings["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    try:
        model: nn.Module = kind(**settings)
    except OPEN_CLIP_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ClipagError(
            f"The architecture of {what} is not one that open_clip knows: {reason}."
        ) from error
    use_openais_names(model)
    return model


class OpenClip(TwoTowers):
    """Any other architecture of open_clip, such as its ResNets and ConvNeXts.

    `model.visual` has the parts of open_clip's image tower, and `model` those of its text tower,
    in open_clip's layout.

    Args:
        config: the `model_cfg`.
        name: the model's name.
        what: how messages name the model's source; by default its name.

    Raises:
        ClipagError: open_clip cannot build such a model.
    """

    def __init__(self, config: dict[str, Any], name: str, what: str | None = None):
        what = what or name
        side = config["vision_cfg"].get("image_size", 224)
        if isinstance(side, list | tuple) and side:
            side = side[0]
        Settings({"image_size": side}, what).integer("image_size", largest=LARGEST_SIDE)
        embed_dim = Settings(config, what).integer("embed_dim")
        clip: Any = _build_with_open_clip(config, what)
        tower = ImageTower(clip.visual, side, embed_dim)
        super().__init__(name, tower, clip, 0.0, clip.context_length, clip.vocab_size, config)
        # Each weight has one place: the text half keeps neither the image tower nor the scale.
        del clip.visual, clip.logit_scale

    def encode_text(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, of (B, 77) integer tokens."""
        embedding: Tensor = self.text.encode_text(text)  # type: ignore[operator]
        return embedding

    def initialize_parameters(self) -> None:
        """Draw the text tower's and a ResNet's weights anew, as OpenAI's constructor does."""
        initialize_text_parameters(self)
        if hasattr(self.visual.tower, "init_parameters"):
            self.visual.tower.init_parameters()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights, and record the activation in the metadata."""
        state = super().state_dict(*args, **kwargs)
        activation = bool(self.config.get("quick_gelu"))
        state._metadata[kwargs.get("prefix", "")[:-1]]["quick_gelu"] = activation
        return state

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict under open_clip's names."""
        visual = self.visual.tower.state_dict(prefix="visual.")
        return {"logit_scale": self.logit_scale.detach(), **visual, **self.text.state_dict()}

    def load_weights(self, state: Mapping[str, Tensor], what: str) -> None:
        """Load a state dict in open_clip's names.

        Raises:
            ClipagError: as for `check_tensors`.
        """
        check_tensors(self.weights(), state, what)
        self.load_state_dict({_name_in_two_towers(key): value for key, value in state.items()})


def _name_in_two_towers(name: str) -> str:
    """Return the name that a weight of open_clip's has in `OpenClip`."""
    if name == "logit_scale":
        return name
    if name.startswith("visual."):
        return f"visual.tower.{name.removeprefix('visual.')}"
    return f"text.{name}"


def load_weights(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict into a module, which may be on the meta device.

    Raises:
        ClipagError: as for `check_tensors`.
    """
    expected = module.state_dict()
    check_tensors(expected, state, what)
    # Assigned, not copied: a module on the meta device has no memory to copy into.
    module.load_state_dict(
        {key: value.to(expected[key].dtype) for key, value in state.items()}, assign=True
    )


def check_tensors(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Refuse a state dict that does not fit.

    Args:
        expected: a state dict with the right names and shapes, for instance on the meta device.
        state: the state dict to check.
        what: how messages name it.

    Raises:
        ClipagError: names or shapes differ, or a value is not finite.
    """
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing and extra:
        raise ClipagError(
            f"{what} has another architecture: {len(missing) + len(extra)} tensor names differ, "
            f"for instance {missing[0]!r} and {extra[0]!r}."
        )
    if missing:
        raise ClipagError(
            f"{what} is incomplete or of another architecture: {len(missing)} tensors are missing, "
            f"for instance {missing[0]!r}."
        )
    if extra:
        raise ClipagError(
            f"{what} holds more than a model, or another architecture: {len(extra)} tensors have "
            f"no place in it, for instance {extra[0]!r}."
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise ClipagError(
                f"{what} has another architecture: {key} is {tuple(state[key].shape)}, "
                f"not {tuple(tensor.shape)}."
            )
        if not is_finite(state[key]):
            raise ClipagError(f"{what} is damaged: {key} holds values that are not finite.")


def is_finite(tensor: Tensor) -> bool:
    """Say whether all values of a tensor are finite."""
    if not tensor.is_floating_point() or tensor.element_size() == 1 or tensor.numel() == 0:
        return bool(tensor.isfinite().all())
    # One pass instead of four. The extremes of anything with NaN are NaN.
    return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())
