"""Pictures in and out: read them safely, turn them into tensors and back, write PNG."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .arguments import check_side
from .errors import ClipagError
from .files import write_beside

LARGEST_PICTURE = 64_000_000  # pixels of a picture that is read
ANIMATIONS = ("GIF", "PNG", "WEBP")  # other formats of several pictures hold pages or previews
# What Pillow raises for files that are broken or not pictures.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, KeyError, struct.error, zlib.error)


def read_picture(path: Path) -> Image.Image:
    """Read a picture as RGB, turned as its EXIF says, transparent parts on white.

    Raises:
        ClipagError: the file is missing, not a picture, or has too many pixels.
    """
    return on_white(read_rgba(path))


def open_picture(picture: str | Path | Image.Image) -> Image.Image:
    """Return a picture, or the one at a path, as RGB: see `upright` and `read_picture`."""
    return upright(picture) if isinstance(picture, Image.Image) else read_picture(Path(picture))


def read_rgba(path: Path, still: bool = False) -> Image.Image:
    """Read a picture as RGBA, turned as its EXIF says; of an animation, the first frame.

    Args:
        path: a file in any format that Pillow knows, with 8 or 16 bits a channel.
        still: refuse animations instead.

    Raises:
        ClipagError: the file is missing, not a readable picture, or has too many pixels.
    """
    try:
        with Image.open(path) as file:
            # The header alone decides, before a single pixel is decoded.
            if file.width * file.height > LARGEST_PICTURE:
                raise ClipagError(
                    f"{path} has {file.width} × {file.height} pixels: "
                    f"shrink it to at most {LARGEST_PICTURE // 1_000_000} megapixels."
                )
            if still and file.format in ANIMATIONS and getattr(file, "is_animated", False):
                raise ClipagError(
                    f"{path} is an animation: write its frames as pictures to a folder, and name "
                    "the folder."
                )
            return _upright_rgba(file)
    except FileNotFoundError as error:
        raise ClipagError(f"There is no picture at {path}.") from error
    except Image.DecompressionBombError as error:
        raise ClipagError(f"{path} has too many pixels to be a picture: shrink it.") from error
    except UNREADABLE as error:
        raise ClipagError(f"{path} is not a picture that can be read.") from error


def read_square(path: Path, side: int) -> Tensor:
    """Read a picture, cropped to a square, as (3, side, side) in [0, 1].

    Raises:
        ClipagError: the file cannot be read, or `side` is out of range.
    """
    check_side(side)
    return from_pil(read_picture(path), (side, side))


def upright(picture: Image.Image) -> Image.Image:
    """Return a picture as RGB, turned as its EXIF says, transparent parts on white."""
    return on_white(_upright_rgba(picture))


def on_white(picture: Image.Image) -> Image.Image:
    """Return an RGBA picture as RGB, composed on white."""
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _upright_rgba(picture: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(picture)
    if turned.mode == "F":
        name = getattr(picture, "filename", "") or "the picture"
        raise ClipagError(f"The pixels of {name} are floating-point: save it with 8 or 16 bits.")
    if turned.mode.startswith("I"):
        # 16 bits. Pillow's own conversion clips at 255 instead of scaling.
        turned = Image.fromarray((np.array(turned) / 257).clip(0, 255).astype(np.uint8))
    return turned.convert("RGBA")


def from_pil(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """Crop and scale an RGB picture to (width, height), and return it as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(ImageOps.fit(picture, size))).permute(2, 0, 1) / 255


def to_pil(image: Tensor) -> Image.Image:
    """Turn an image (3, H, W) in [0, 1] into a PIL picture."""
    rounded = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(rounded.cpu().permute(1, 2, 0).numpy())


def save_png(picture: Image.Image, path: Path, metadata: Mapping[str, object]) -> None:
    """Write a PNG that carries `metadata` (prompt, seed, model, …) as text chunks."""
    chunks = PngInfo()
    for key, value in metadata.items():
        chunks.add_itxt(key, str(value))
    with write_beside(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=chunks)
