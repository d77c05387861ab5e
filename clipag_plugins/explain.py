"""Where a model looks: heat maps of a text over an image (paper, appendix B)."""

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .errors import ClipagError
from .guide import Target
from .mini import MiniImageTower
from .model import ClipagModel, ImageTower, embed_images
from .pag import SAMPLES, SIGMA, input_gradient
from .smoothing import smooth
from .vit import VisionTransformer

METHODS = ("gradcam", "grad", "smoothgrad")


def heat_maps(
    model: ClipagModel,
    images: Tensor,
    targets: Sequence[Target],
    method: str = "gradcam",
    layer: nn.Module | None = None,
) -> Tensor:
    """Return where each image is similar to its target: heat maps (B, H, W), the most at 1.

    Args:
        model: whose image tower is asked.
        images: (B, 3, H, W) in [0, 1].
        targets: one an image.
        method: "gradcam" (Selvaraju et al., ICCV 2017) by pytorch-grad-cam; "grad", the
            largest absolute gradient over colours (Simonyan et al., 2014); or "smoothgrad",
            the same averaged over noise (Smilkov et al., 2017).
        layer: the part of a convolutional tower whose output GradCAM weighs, (B, C, h, w); by
            default what `features_of` says.

    Raises:
        ClipagError: there is no such method, pytorch-grad-cam is not installed, or it is not
            known which features of this tower to ask.
    """
    if method == "gradcam":
        return _gradcam(model, images, targets, layer)
    if method not in METHODS:
        raise ClipagError(f"method is {method!r}: choose from {', '.join(METHODS)}.")
    asked = smooth(model, SIGMA, SAMPLES) if method == "smoothgrad" else model
    heat = input_gradient(asked, images, targets).abs().amax(dim=1)
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def _gradcam(
    model: ClipagModel, images: Tensor, targets: Sequence[Target], layer: nn.Module | None
) -> Tensor:
    asked, as_maps = (layer, None) if layer is not None else features_of(model.visual)
    cam = _library("pytorch_grad_cam").GradCAM(_Embedding(model), [asked], as_maps)

    def similarity(target: Target) -> Callable[[Tensor], Tensor]:
        return lambda z: z @ target.embedding

    # As a context it would swallow errors: the hooks go by hand.
    try:
        with torch.enable_grad():
            # The weights are frozen: the gradient reaches the features by way of the image.
            given = images.detach().requires_grad_(True)
            heat = cam(given, [similarity(target) for target in targets])
    finally:
        cam.activations_and_grads.release()
    return torch.from_numpy(heat).to(images)


def features_of(visual: Any) -> tuple[nn.Module, Callable[[Tensor], Tensor] | None]:
    """Return the module whose output GradCAM weighs, and what makes that maps (B, C, h, w).

    It is the last one before space is lost. In a transformer the class token alone reaches the
    embedding, so it is what the last block's attention reads; in a convolutional tower its last
    stage, but in the embedded one the stage before: three by three says little of a place. (On
    training pictures that stage points better in `clip-mini` and `clipag-mini` alike.)

    Raises:
        ClipagError: the tower is of another kind.
    """
    tower = visual.tower if isinstance(visual, ImageTower) else visual
    layers: Any = tower
    if isinstance(tower, VisionTransformer):
        return layers.transformer.resblocks[-1].ln_1, lambda x: _grid(x.transpose(0, 1), 1)
    if isinstance(tower, MiniImageTower):
        strides = [i for i, layer in enumerate(tower.layers) if isinstance(layer, nn.Conv2d)]
        return tower.layers[strides[-1] - 1], None
    if hasattr(tower, "layer4"):  # OpenAI's ResNets
        return layers.layer4, None
    if hasattr(tower, "transformer"):  # open_clip's own transformer, batch first
        return layers.transformer.resblocks[-1].ln_1, lambda x: _grid(x, 1)
    trunk: Any = getattr(tower, "trunk", None)  # timm's
    if hasattr(trunk, "stages"):
        return trunk.stages[-1], None
    if hasattr(trunk, "blocks"):
        return trunk.blocks[-1].norm1, lambda x: _grid(x, trunk.num_prefix_tokens)
    raise ClipagError(
        f"It is not known where {type(tower).__name__} keeps its features: choose the method grad."
    )


def _grid(tokens: Tensor, extra: int) -> Tensor:
    """Turn tokens (B, extra + h·w, C) into maps (B, C, h, w)."""
    side = math.isqrt(tokens.shape[1] - extra)
    maps: Tensor = tokens[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    return maps


def _library(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ClipagError(
            f"Heat maps need pytorch-grad-cam, and {error.name} is not installed: "
            "pip install 'clipag-plugins[explain]'."
        ) from error


class _Embedding(nn.Module):
    """Unit-length embeddings of images in [0, 1]: what pytorch-grad-cam is to differentiate."""

    def __init__(self, model: ClipagModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings (B, D) of images (B, 3, H, W)."""
        return embed_images(self.model, images)


def over(image: Tensor, heat: Tensor) -> Image.Image:
    """Return a picture of an image (3, H, W) under its heat map (H, W), from blue to red.

    Raises:
        ClipagError: pytorch-grad-cam is not installed.
    """
    pixels = image.detach().clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    show = _library("pytorch_grad_cam.utils.image").show_cam_on_image
    return Image.fromarray(show(pixels, heat.cpu().numpy(), use_rgb=True))
