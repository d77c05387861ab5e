"""What the nodes ask of ComfyUI: progress and previews, Cancel, memory, folders.

No module of ComfyUI is imported: inside ComfyUI all of them are loaded already, and `comfy` takes
them from there. Outside, nodes are plain functions without a progress bar, on the CPU.
"""

import functools
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from clipag_plugins.errors import ClipagError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clipag_plugins.arguments import RunOptions

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="nn.Module")

LARGEST_PREVIEW = 512  # pixels of a side


def comfy(module: str) -> Any:
    """Return a loaded module of ComfyUI, or None outside ComfyUI."""
    return sys.modules.get(module) if "comfy.model_management" in sys.modules else None


def with_gradients(run: Callable[P, R]) -> Callable[P, R]:
    """Run a node outside the inference mode in which ComfyUI executes nodes."""

    @functools.wraps(run)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        import torch

        with torch.inference_mode(False), torch.enable_grad():
            return run(*args, **kwargs)

    return outside


class Progress:
    """A callback of ascents that moves the progress bar and shows the picture with the lowest loss.

    ComfyUI's bar raises its own exception after Cancel, which ends the ascent and the node.

    Args:
        steps: of one ascent.
        ascents: number of ascents, one after another.
    """

    def __init__(self, steps: int, ascents: int = 1):
        utils = comfy("comfy.utils")
        self.bar = None if utils is None else utils.ProgressBar(steps * ascents)
        self.steps = steps
        self.finished = 0

    def __call__(self, step: int, images: "Tensor", losses: "Tensor") -> None:
        """Show the step, and the image with the lowest loss of (B, 3, H, W)."""
        from clipag_plugins.pictures import to_pil

        if self.bar is not None:
            picture = to_pil(images[int(losses.argmin())])
            done = self.finished * self.steps + step
            self.bar.update_absolute(done, preview=("JPEG", picture, LARGEST_PREVIEW))
        if step == self.steps:
            self.finished += 1


class Managed(Generic[M]):
    """A model in ComfyUI's memory management, which moves it to the GPU and back.

    Args:
        model: frozen and in eval mode, on the CPU.
        options: how nodes compute with it.

    Attributes:
        patcher: ComfyUI's handle of the model; None outside ComfyUI.
    """

    def __init__(self, model: M, options: "RunOptions"):
        self._model = model
        self.options = options
        self.patcher: Any = None
        if (patchers := comfy("comfy.model_patcher")) is not None:
            management = comfy("comfy.model_management")
            self.patcher = patchers.ModelPatcher(
                _holder(model),
                load_device=management.get_torch_device(),
                offload_device=management.text_encoder_offload_device(),
            )

    def loaded(self) -> M:
        """Return the model as `ready` does, for code inside a sampler.

        If it is loaded already, nothing else is unloaded: not the model that is sampled.
        """
        if self.patcher is not None:
            device = next(self._model.parameters()).device
            if device.type != self.patcher.load_device.type:
                return self.ready()
        thaw(self._model)
        return self._model

    def ready(self) -> M:
        """Return the model on the device where it runs, differentiable in its input."""
        if self.patcher is not None:
            # Only ComfyUI's own layers can compute while a part of the weights is elsewhere.
            comfy("comfy.model_management").load_models_gpu([self.patcher], force_full_load=True)
        thaw(self._model)
        return self._model


def _holder(model: "nn.Module") -> "nn.Module":
    """Return a module around a model, to which ModelPatcher can add attributes such as `device`."""
    from torch import nn

    return nn.ModuleList([model])


def thaw(module: "nn.Module") -> None:
    """Replace the weights that ComfyUI made or moved in inference mode by equal ones.

    Autograd refuses tensors of the inference mode, even as constants.
    """
    from torch import nn

    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_inference():
                part._parameters[name] = nn.Parameter(weight.detach().clone(), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()


def model_files() -> list[str]:
    """Return the names of the files in ComfyUI's `models/clip_vision`."""
    folders = comfy("folder_paths")
    return [] if folders is None else list(folders.get_filename_list("clip_vision"))


def model_path(name: str) -> Path | None:
    """Return the path of a file in `models/clip_vision`, or None if there is none of this name."""
    folders = comfy("folder_paths")
    path = None if folders is None else folders.get_full_path("clip_vision", name)
    return None if path is None else Path(path)


class Svg:
    """The socket type SVG, as ComfyUI's Save SVG takes it.

    Args:
        data: one file for each drawing.
    """

    def __init__(self, data: list[BytesIO]):
        self.data = data


def svg_of(files: list[str]) -> Svg:
    """Return the texts of SVG files as ComfyUI's own SVG, or as `Svg` outside ComfyUI."""
    latest = comfy("comfy_api.latest")
    kind = Svg if latest is None else latest.IO.SVG.Type
    return cast(Svg, kind([BytesIO(text.encode("utf-8")) for text in files]))


def need(value: R | None, socket: str, remedy: str) -> R:
    """Return what is connected to a socket.

    Raises:
        ClipagError: nothing is.
    """
    if value is None:
        raise ClipagError(f"Nothing is connected to `{socket}`: {remedy}.")
    return value
