"""Where a model looks: heat maps of a text over an image (paper, appendix B)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ClipagModel, embed_images
from .errors import ClipagError, library
from .mini import Block
from .pag import input_gradient
from .smoothing import smooth
from .stages import Maps, stages
from .targets import Target, text_embeddings

# What pytorch-grad-cam calls its methods.
CAMS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
}
METHODS = (*CAMS, "grad", "smoothgrad")
NOISE, COPIES = 0.15, 32  # of SmoothGrad: 10 % to 20 % of the range


def heat_maps(
    model: ClipagModel,
    images: Tensor,
    targets: Sequence[Target],
    method: str = "hirescam",
    layer: nn.Module | None = None,
) -> Tensor:
    """Return where each image is similar to its target: heat maps (B, H, W), the most at 1.

    Args:
        model: whose image tower is asked.
        images: (B, 3, H, W) in [0, 1].
        targets: one an image, best as `contrast_targets` makes them.
        method: by pytorch-grad-cam "gradcam" (Selvaraju et al., ICCV 2017), "gradcam++"
            (Chattopadhay et al., WACV 2018), "hirescam" (Draelos & Carin, 2020) or "layercam"
            (Jiang et al., TIP 2021); "grad", the largest absolute gradient over colours
            (Simonyan et al., 2014); or "smoothgrad", the same averaged over noise (Smilkov et
            al., 2017).
        layer: the part of a convolutional tower whose output the first four weigh, (B, C, h,
            w); by default what `default_layer` says.

    Raises:
        ClipagError: there is no such method, pytorch-grad-cam is not installed, or it is not
            known which features of this tower to ask.
    """
    if method in CAMS:
        return _cam(model, images, targets, method, layer)
    if method not in METHODS:
        raise ClipagError(f"method is {method!r}: choose from {', '.join(METHODS)}.")
    asked = smooth(model, NOISE, COPIES) if method == "smoothgrad" else model
    heat = input_gradient(asked, images, targets).abs().amax(dim=1)
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def contrast_targets(
    model: ClipagModel, texts: Sequence[str], others: Sequence[str] | None = None
) -> list[Target]:
    """Encode what each text says that others do not: targets to make heat maps of.

    The embeddings of all texts have much in common, and a gradient of the plain similarity shows
    that too. So the others' mean is taken off, as CLIP Surgery does (Li et al., 2023). By default
    they are a hundred names of ImageNet's classes.

    Raises:
        ClipagError: a text is empty or has more than 77 tokens.
    """
    if others is None:
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        others = IMAGENET_CLASSNAMES[::10]
    own, rest = (text_embeddings(model, side) for side in (texts, others))
    return [Target(embedding) for embedding in F.normalize(own - rest.mean(dim=0), dim=1)]


def _cam(
    model: ClipagModel,
    images: Tensor,
    targets: Sequence[Target],
    method: str,
    layer: nn.Module | None,
) -> Tensor:
    asked, as_maps = (layer, None) if layer is not None else default_layer(model.visual, method)
    make = getattr(library("pytorch_grad_cam", "explain"), CAMS[method])
    cam = make(_Embedding(model), [asked], as_maps)

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


def default_layer(visual: Any, method: str = "gradcam") -> tuple[nn.Module, Maps]:
    """Return the module whose output a method weighs, and what makes that maps (B, C, h, w).

    It is the last one before space is lost. In a transformer the class token alone reaches the
    embedding, so it is what the last block's attention reads; in a convolutional tower its last
    stage. But three by three, as there are in the embedded one, say little of a place. There it
    is the stage before, and the first where a method takes each place's own gradient. (On
    training pictures both point best there, in `clip-mini` and `clipag-mini` alike:
    `benchmarks/explain.py`.)

    Raises:
        ClipagError: the tower is of another kind.
    """
    try:
        parts, as_maps = stages(visual)
    except ClipagError as error:
        raise ClipagError(f"{error} Choose the method grad.") from error
    last: Any = parts[-1]
    if isinstance(last, Block):
        return parts[0 if method in ("hirescam", "layercam") else -2], as_maps
    for norm in ("ln_1", "norm1"):  # open_clip's and OpenAI's name, and timm's
        if hasattr(last, norm):
            return getattr(last, norm), as_maps
    return last, as_maps


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
    show = library("pytorch_grad_cam.utils.image", "explain").show_cam_on_image
    return Image.fromarray(show(pixels, heat.cpu().numpy(), use_rgb=True))
