"""ComfyUI's IMAGE and MASK, and what the library takes.

An IMAGE is (B, H, W, 3) in [0, 1]; a MASK is (B, H, W) or (H, W), white where something changes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipag_plugins.arguments import LARGEST, SMALLEST
from clipag_plugins.errors import ClipagError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def tensors_of(image: "Tensor") -> "Tensor":
    """Return an IMAGE as images (B, 3, H, W), float32.

    Raises:
        ClipagError: there is no picture, it is not RGB, or it is broken.
    """
    if image is None or image.ndim != 4 or not image.numel():
        shape = "nothing" if image is None else f"an empty batch, {tuple(image.shape)}"
        raise ClipagError(f"`image` holds {shape}: connect at least one picture.")
    if image.shape[-1] != 3:
        raise ClipagError(
            f"`image` has {image.shape[-1]} channels: give it 3, red, green and blue (Split Image "
            "with Alpha takes a fourth away)."
        )
    if not image.isfinite().all():
        raise ClipagError(
            "`image` holds NaN or infinity: connect another one, or run the VAE that made it in "
            "float32."
        )
    # Cloned: tensors of the inference mode cannot take part in a gradient.
    return image.detach().clone().float().movedim(-1, 1).clamp(0, 1)


def pictures_of(image: "Tensor") -> "list[Image.Image]":
    """Return an IMAGE as pictures; raise ClipagError as `tensors_of` does."""
    from clipag_plugins.pictures import to_pil

    return [to_pil(each) for each in tensors_of(image)]


def drawable(image: "Tensor") -> "list[Image.Image]":
    """Return an IMAGE as pictures that an ascent can start from.

    Raises:
        ClipagError: as of `tensors_of`; or the pictures are too small or too large.
    """
    pictures = pictures_of(image)
    width, height = pictures[0].size
    if min(width, height) < SMALLEST or max(width, height) > LARGEST:
        raise ClipagError(
            f"`image` has {width} × {height} pixels: scale it to sides from {SMALLEST} to "
            f"{LARGEST} (Upscale Image does)."
        )
    return pictures


def image_of(pictures: "Sequence[Image.Image | Tensor]") -> "Tensor":
    """Return equally large pictures, or images (3, H, W) in [0, 1], as an IMAGE (B, H, W, 3).

    The values are those of 8 bits, so that Save Image writes what the command line writes.
    """
    import numpy as np
    import torch
    from PIL import Image

    from clipag_plugins.pictures import to_pil

    arrays = [
        np.array(each if isinstance(each, Image.Image) else to_pil(each)) for each in pictures
    ]
    return torch.from_numpy(np.stack(arrays)).float() / 255


def masks_of(mask: "Tensor", pictures: "Sequence[Image.Image]") -> "list[Image.Image]":
    """Return a MASK as one greyscale picture for each of the pictures.

    Raises:
        ClipagError: the mask has another size, or there are more or fewer masks.
    """
    from torchvision.transforms.functional import to_pil_image

    if mask.ndim == 2:
        mask = mask[None]
    width, height = pictures[0].size
    if mask.shape[-2:] != (height, width):
        raise ClipagError(
            f"`mask` has {mask.shape[-1]} × {mask.shape[-2]} pixels and the picture {width} × "
            f"{height}: give a mask of that size (Load Image makes a black one of 64 × 64 if the "
            "file has no transparency)."
        )
    if len(mask) not in (1, len(pictures)):
        raise ClipagError(
            f"`mask` holds {len(mask)} masks for {len(pictures)} pictures: give one, or as many."
        )
    whites = [to_pil_image((each.detach().float().clamp(0, 1) * 255).round().byte().cpu())
              for each in mask]  # fmt: skip
    return whites * len(pictures) if len(whites) == 1 else whites
