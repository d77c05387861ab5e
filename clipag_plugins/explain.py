"""Heat maps: where in an image a model finds a text (paper, appendix B)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ClipagModel, embed_images
from .defaults import CAMS, HEAT_MAP_METHOD, HEAT_MAP_METHODS
from .errors import ClipagError, library
from .mini import Block
from .pag import input_gradient
from .smoothing import smooth
from .stages import ToMaps, stages
from .targets import Target, text_embeddings

# SmoothGrad's paper advises noise of 10 % to 20 % of the range of pixels.
SMOOTHGRAD_SIGMA, SMOOTHGRAD_SAMPLES = 0.15, 32


def heat_maps(
    model: ClipagModel,
    images: Tensor,
    targets: Sequence[Target],
    method: str = HEAT_MAP_METHOD,
    layer: nn.Module | None = None,
) -> Tensor:
    """Return heat maps (B, H, W) in [0, 1] of where each image is similar to its target.

    Args:
        model: the model to explain.
        images: (B, 3, H, W) in [0, 1].
        targets: one per image, preferably from `contrast_targets`.
        method: a class activation map (CAM) by pytorch-grad-cam, "gradcam" (Selvaraju et al., ICCV
            2017), "gradcam++" (Chattopadhay et al., WACV 2018), "hirescam" (Draelos & Carin, 2020)
            or "layercam" (Jiang et al., TIP 2021); "grad", the largest absolute gradient over the
            colour channels (Simonyan et al., 2014); or "smoothgrad", the same averaged over noise
            (Smilkov et al., 2017).
        layer: for a CAM of a convolutional tower, the module whose output (B, C, h, w) is weighted;
            by default the one of `default_layer`.

    Raises:
        ClipagError: there is no such method, pytorch-grad-cam is not installed, or the stages of
            this image tower are unknown.
    """
    if method in CAMS:
        return _cam(model, images, targets, method, layer)
    if method not in HEAT_MAP_METHODS:
        raise ClipagError(f"`method` is {method!r}: choose from {', '.join(HEAT_MAP_METHODS)}.")
    if method == "smoothgrad":
        model = smooth(model, SMOOTHGRAD_SIGMA, SMOOTHGRAD_SAMPLES)
    heat = input_gradient(model, images, targets).abs().amax(dim=1)
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def contrast_targets(
    model: ClipagModel, texts: Sequence[str], others: Sequence[str] | None = None
) -> list[Target]:
    """Return one target per text that encodes how the text differs from other texts.

    The embeddings of all texts have much in common, and a heat map of the plain similarity shows
    this common part too. Subtracting the mean embedding of other texts removes it, as in CLIP
    Surgery (Li et al., 2023).

    Args:
        model: the model whose text encoder is used.
        texts: what the heat maps should show.
        others: the texts to differ from; by default a hundred names of ImageNet classes.

    Raises:
        ClipagError: a text is empty or has more than 77 tokens.
    """
    if others is None:
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        others = IMAGENET_CLASSNAMES[::10]
    mean_of_others = text_embeddings(model, others).mean(dim=0)
    contrasts = F.normalize(text_embeddings(model, texts) - mean_of_others, dim=1)
    return [Target(contrast) for contrast in contrasts]


def _cam(
    model: ClipagModel,
    images: Tensor,
    targets: Sequence[Target],
    method: str,
    layer: nn.Module | None,
) -> Tensor:
    to_maps = None
    if layer is None:
        layer, to_maps = default_layer(model.visual, method)
    cam_class = getattr(library("pytorch_grad_cam", "explain"), CAMS[method])
    cam = cam_class(_UnitEmbedding(model), [layer], to_maps)

    def similarity_to(target: Target) -> Callable[[Tensor], Tensor]:
        return lambda embedding: embedding @ target.embedding

    # Not `with cam`: its __exit__ swallows errors. Release its hooks explicitly instead.
    try:
        with torch.enable_grad():
            # With frozen weights the features need a gradient only if the image does.
            images = images.detach().requires_grad_(True)
            heat = cam(images, [similarity_to(target) for target in targets])
    finally:
        cam.activations_and_grads.release()
    return torch.from_numpy(heat).to(images)


def default_layer(visual: Any, method: str = "gradcam") -> tuple[nn.Module, ToMaps]:
    """Return the module whose output a CAM weights, and a function that turns it into maps.

    The maps are (B, C, h, w). The module is the last one that still has spatial positions. In a
    transformer only the class token reaches the embedding, so the module is the normalisation
    before the last block's attention. In a convolutional tower it is the last stage.

    The last stage of an embedded tower has only 3 × 3 positions, which localise too coarsely. The
    module is then the stage before it, or the first stage for the methods that use the gradient at
    each position ("hirescam", "layercam"). On training pictures these point best, in `clip-mini`
    and in `clipag-mini` (`benchmarks/explain.py`).

    Raises:
        ClipagError: the stages of this tower are unknown.
    """
    try:
        modules, to_maps = stages(visual)
    except ClipagError as error:
        raise ClipagError(f"{error} Choose the method grad.") from error
    last: Any = modules[-1]
    if isinstance(last, Block):
        return modules[0 if method in ("hirescam", "layercam") else -2], to_maps
    for norm in ("ln_1", "norm1"):  # its name in OpenAI's and open_clip's blocks, and in timm's
        if hasattr(last, norm):
            return getattr(last, norm), to_maps
    return last, to_maps


class _UnitEmbedding(nn.Module):
    """The function that pytorch-grad-cam differentiates: unit-length embeddings of images."""

    def __init__(self, model: ClipagModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        return embed_images(self.model, images)


def overlay(image: Tensor, heat: Tensor) -> Image.Image:
    """Return a picture of an image (3, H, W) in [0, 1] with its heat map (H, W) laid over it.

    The colours run from blue (0) to red (1).

    Raises:
        ClipagError: pytorch-grad-cam is not installed.
    """
    pixels = image.detach().clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    show = library("pytorch_grad_cam.utils.image", "explain").show_cam_on_image
    return Image.fromarray(show(pixels, heat.cpu().numpy(), use_rgb=True))
