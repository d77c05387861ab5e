"""Nodes that load models into ComfyUI's memory management."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipag_plugins.arguments import MOST_VIEWS, RunOptions
from clipag_plugins.defaults import DRAWING_MODEL, MODEL, PRECISIONS, PUBLIC_VQGANS, VQGAN
from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.comfyui.host import (
    Managed,
    model_files,
    model_path,
    with_gradients,
)
from clipag_plugins.integrations.comfyui.widgets import Input, choice, inputs_of, integer
from clipag_plugins.registry import MODELS

if TYPE_CHECKING:
    from torch import nn

    from clipag_plugins.base import ClipagModel

CATEGORY = "CLIPAG/loaders"


@dataclass(frozen=True)
class ModelWidgets:
    """The widgets of `LoadModel` beside the name."""

    precision: str = choice(
        ("auto", *PRECISIONS),
        RunOptions.precision,
        "What the image tower computes in. auto is bfloat16 where the hardware has it.",
    )
    max_views: int = integer(
        RunOptions.max_views,
        1,
        MOST_VIEWS,
        "Views that the model sees at once. Fewer need less memory.",
    )


class LoadModel:
    """Load a CLIP that guides."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Load a CLIP that guides: a known model, which is fetched if need be, or a file in "
        "models/clip_vision."
    )
    RETURN_TYPES = ("CLIPAG_MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model, for the other nodes of CLIPAG.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        tooltip = (
            f"A known model, or a file in models/clip_vision. {DRAWING_MODEL} and {MODEL} need no "
            f"download and draw emoji and clip art: {DRAWING_MODEL} draws better, and {MODEL} is "
            "faster. For photographs choose ViT-B/32."
        )
        names = [*MODELS, *(file for file in model_files() if file not in MODELS)]
        model: Input = (names, {"default": DRAWING_MODEL, "tooltip": tooltip})
        return {"required": {"model_name": model, **inputs_of(ModelWidgets)}}

    @classmethod
    def IS_CHANGED(cls, model_name: str, **widgets: Any) -> str:
        """Return what changes when a file is replaced by another one of the same name."""
        path = None if model_name in MODELS else model_path(model_name)
        if path is None:
            return model_name
        state = path.stat()
        return f"{path} {state.st_size} {state.st_mtime_ns}"

    @with_gradients
    def run(self, model_name: str, **widgets: Any) -> "tuple[Managed[ClipagModel]]":
        """Return the model."""
        from clipag_plugins.hub import load_model

        chosen = ModelWidgets(**widgets)
        options = RunOptions(chosen.precision, chosen.max_views)
        if not model_name:
            raise ClipagError("`model_name` is empty: choose a model.")
        path = None if model_name in MODELS else model_path(model_name)
        return (Managed(load_model(path or model_name), options),)


@dataclass(frozen=True)
class VqganWidgets:
    """The widgets of `LoadVqgan`."""

    vqgan: str = choice(
        (VQGAN, *PUBLIC_VQGANS),
        VQGAN,
        f"The VQGAN that draws. {VQGAN} needs no download; the others have up to 8 GB.",
    )


class LoadVqgan:
    """Load a VQGAN."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Load a VQGAN, which CLIPAG VQGAN draws with."
    RETURN_TYPES = ("CLIPAG_VQGAN",)
    RETURN_NAMES = ("vqgan",)
    OUTPUT_TOOLTIPS = ("The VQGAN, for CLIPAG VQGAN.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        return {"required": inputs_of(VqganWidgets)}

    @with_gradients
    def run(self, **widgets: Any) -> "tuple[Managed[nn.Module]]":
        """Return the VQGAN."""
        from clipag_plugins.integrations.vqgan import load_vqgan

        return (Managed(load_vqgan(VqganWidgets(**widgets).vqgan), RunOptions()),)
