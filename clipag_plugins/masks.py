"""Change a part of a picture only: what is white in a mask.

`Masked` says which picture and which mask. `MaskedCanvas` puts any canvas behind the mask, and
`WholeAndPart` lets the guide see the masked part from close up as well as the whole picture.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from .arguments import LARGEST, SMALLEST
from .canvas import Canvas, NormalizedGradient, Optimizer
from .errors import ClipagError
from .pictures import from_pil, open_picture
from .views import MakeViews

SEAM = 0.02  # width of the soft seam, as a share of the picture's shorter side
MARGIN = 0.25  # around the white part in a close-up, as a share of the part's longer side


@dataclass(frozen=True)
class Masked:
    """A picture of which only the white part of a mask changes.

    Args:
        picture: the path of a picture, or a PIL picture.
        mask: the same. It is scaled to the picture; grey changes in part.
    """

    picture: str | Path | Image.Image
    mask: str | Path | Image.Image

    def read(self, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the picture (1, 3, H, W) and the weight of the change (1, 1, H, W), in [0, 1].

        The weight is that of `weight_of`.

        Args:
            size: (width, height) that the picture is cropped and scaled to; by default its own.

        Raises:
            ClipagError: a file cannot be read, the picture is too small or too large, or nothing
                in the mask is white.
        """
        picture = open_picture(self.picture)
        size = picture.size if size is None else size
        if min(size) < SMALLEST or max(size) > LARGEST:
            raise ClipagError(
                f"The picture has {size[0]} × {size[1]} pixels: sides from {SMALLEST} to {LARGEST} "
                "can be drawn, so shrink it, or set `size`."
            )
        return from_pil(picture, size)[None], weight_of(self.mask, size)


def weight_of(mask: str | Path | Image.Image, size: tuple[int, int]) -> Tensor:
    """Return the weight of the change (1, 1, H, W), in [0, 1], of a mask scaled to (width, height).

    It is 0 wherever the mask is black, and rises softly inside the white part.

    Raises:
        ClipagError: the mask cannot be read, or nothing in it is white.
    """
    white = open_picture(mask).convert("L").resize(size, Image.Resampling.BILINEAR)
    blurred = white.filter(ImageFilter.GaussianBlur(SEAM * min(size)))
    # At the border of the white part the blurred mask is one half; inside it rises to one.
    inside = (2 * _grey(blurred) - 1).clamp(0, 1)
    weight = inside * _grey(white)
    if not (weight > 0).any():
        raise ClipagError("The mask has no white part: paint white what should change.")
    return weight


def _grey(picture: Image.Image) -> Tensor:
    """Return a greyscale picture as (1, 1, H, W) in [0, 1]."""
    return from_pil(picture.convert("RGB"), picture.size)[None, :1]


class MaskedCanvas(Canvas):
    """A canvas that shows through a mask, over a picture that stays.

    Args:
        canvas: renders (B, 3, H, W).
        picture: (1, 3, H, W) in [0, 1].
        weight: (1, 1, H, W) in [0, 1]: where it is 0, the picture stays exactly as it is.
    """

    def __init__(self, canvas: Canvas, picture: Tensor, weight: Tensor):
        super().__init__()
        self.canvas = canvas
        self.register_buffer("picture", picture, persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.picture: Tensor
        self.weight: Tensor

    def render(self) -> Tensor:
        """Return the images, (B, 3, H, W)."""
        changed = self.weight * self.canvas.render() + (1 - self.weight) * self.picture
        return torch.where(self.weight > 0, changed, self.picture)

    def optimizer(self) -> Optimizer:
        """Return the optimiser of the canvas.

        Only what is white has a gradient. A step of a whole picture's length would all go there.
        """
        optimizer = self.canvas.optimizer()
        if isinstance(optimizer, NormalizedGradient):
            optimizer.step_size *= self.weight.mean().item() ** 0.5
        return optimizer

    def constrain(self) -> None:
        """Constrain the canvas."""
        self.canvas.constrain()

    def state(self) -> dict[str, Tensor]:
        """Return the state of the canvas, under the names that `load_state_dict` takes."""
        return {f"canvas.{name}": values for name, values in self.canvas.state().items()}


class WholeAndPart:
    """Views of the whole image, and as many of the part that a mask lets change.

    Args:
        views: makes views of the whole and of the part.
        weight: (1, 1, H, W): the part is where it is above 0, and a margin around it.
    """

    def __init__(self, views: MakeViews, weight: Tensor):
        self.views = views
        height, width = weight.shape[-2:]
        rows, columns = weight[0, 0].nonzero().unbind(1)
        top, bottom = int(rows.min()), int(rows.max()) + 1
        left, right = int(columns.min()), int(columns.max()) + 1
        margin = round(MARGIN * max(bottom - top, right - left))
        self.box = (
            slice(max(0, top - margin), min(height, bottom + margin)),
            slice(max(0, left - margin), min(width, right + margin)),
        )

    @property
    def count(self) -> int:
        """Number of views of one image."""
        return 2 * self.views.count

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return views (B, V, 3, size, size) of images (B, 3, H, W), and weights (V,)."""
        whole, whole_weights = self.views(images, size)
        part, part_weights = self.views(images[..., self.box[0], self.box[1]], size)
        return torch.cat([whole, part], dim=1), torch.cat([whole_weights, part_weights]) / 2
