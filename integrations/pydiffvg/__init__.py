"""diffvg's Python interface (Li et al., 2020) over the renderer in torch: no compiler needed.

What scripts that draw with diffvg use, name for name: shapes, groups, gradients, `RenderFunction`,
`imwrite`, and SVG in and out. There are no distance fields (`OutputType.sdf`), no pixel filter but
the default one, no `OptimizableSvg`, and no strokes of changing width.

Two things differ on purpose. diffvg throws `num_samples` random points into each pixel; here the
same grid of samples has its coverage computed, so that nothing is random and `seed` is not used.
And where a shape covers a pixel in part, with no background, diffvg averages its colour with the
black of samples that hit nothing: scripts that then multiply by alpha draw dark fringes. Here the
colour is the shape's own, and what such scripts draw is what the SVG shows. Scripts that compare
RGBA as it is see harder edges in the colours than diffvg's, and the same alpha.
"""

import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from pathlib import Path as _File
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside
from clipag_plugins.integrations.pydiffvg.shapes import (
    Circle,
    Ellipse,
    Path,
    Polygon,
    Rect,
    Shape,
    ShapeGroup,
    to_groups,
)
from clipag_plugins.integrations.pydiffvg.svg_scene import from_svg_path, svg_to_scene
from clipag_plugins.integrations.vector.paints import LinearGradient, RadialGradient
from clipag_plugins.integrations.vector.paths import Group, Paint
from clipag_plugins.integrations.vector.renderer import render
from clipag_plugins.integrations.vector.svg import write_svg

__all__ = [
    "Circle",
    "Ellipse",
    "FilterType",
    "LinearGradient",
    "OutputType",
    "Path",
    "PixelFilter",
    "Polygon",
    "RadialGradient",
    "Rect",
    "RenderFunction",
    "ShapeGroup",
    "from_svg_path",
    "get_device",
    "get_use_gpu",
    "imwrite",
    "save_svg",
    "set_device",
    "set_print_timing",
    "set_use_gpu",
    "svg_to_scene",
]

# Below this alpha colours fade to black. On any background that changes a picture by less than one
# of 256 levels, and the gradient of colour / alpha stays bounded.
_LEAST_ALPHA = 1 / 64


@dataclass
class _State:
    device: torch.device
    use_gpu: bool
    print_timing: bool = False


_state = _State(
    torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.cuda.is_available()
)


def set_device(d: torch.device | str) -> None:
    """Choose where pictures are rendered, whatever device the shapes are on."""
    _state.device = torch.device(d)
    _state.use_gpu = _state.device.type == "cuda"


def get_device() -> torch.device:
    """Return where pictures are rendered."""
    return _state.device


def set_use_gpu(v: bool) -> None:
    """Go back to the CPU if `v` is false; a GPU is chosen by `set_device`."""
    _state.use_gpu = v
    if not v:
        _state.device = torch.device("cpu")


def get_use_gpu() -> bool:
    """Return whether a GPU is to be used."""
    return _state.use_gpu


def set_print_timing(val: bool) -> None:
    """Choose whether every rendering prints the time that it took."""
    _state.print_timing = val


class OutputType(IntEnum):
    """What `serialize_scene` is asked for: here, always `color`."""

    color = 1
    sdf = 2


class FilterType(Enum):
    """Pixel filters: here, always `box`."""

    box = 0
    tent = 1
    parabolic = 2
    hann = 3


class PixelFilter:
    """A pixel filter: here, the default box of radius 0.5 is the only one that can be rendered."""

    def __init__(self, type: FilterType, radius: Tensor | float = 0.5) -> None:
        self.type = type
        self.radius = radius


class _Scene(NamedTuple):
    width: int
    height: int
    shapes: list[Shape]
    groups: list[ShapeGroup]


class RenderFunction:
    """Rendering, called as diffvg's autograd function is."""

    @staticmethod
    def serialize_scene(
        canvas_width: int,
        canvas_height: int,
        shapes: Sequence[Shape],
        shape_groups: Sequence[ShapeGroup],
        filter: PixelFilter | None = None,
        output_type: OutputType = OutputType.color,
        use_prefiltering: bool = False,
        eval_positions: Tensor | None = None,
    ) -> list[_Scene]:
        """Return what `apply` takes after its first six arguments.

        Args:
            canvas_width, canvas_height: of the coordinates.
            shapes: what the groups refer to.
            shape_groups: painted in order.
            filter: a box of radius 0.5.
            output_type: `OutputType.color`.
            use_prefiltering: makes no difference: coverage is always computed.
            eval_positions: none.

        Raises:
            ClipagError: one of the last four is something that cannot be rendered.
        """
        if output_type != OutputType.color:
            raise ClipagError("Distance fields cannot be rendered: ask for OutputType.color.")
        if eval_positions is not None and len(eval_positions):
            raise ClipagError("eval_positions cannot be rendered: render the picture, and pick.")
        if filter is not None and (filter.type.name, float(filter.radius)) != ("box", 0.5):
            raise ClipagError(
                f"The pixel filter {filter.type.name} of radius {float(filter.radius):g} cannot be "
                "rendered: leave filter out, which is a box of radius 0.5."
            )
        # As diffvg: the tensors of now, not copies of them.
        held, groups = [copy(shape) for shape in shapes], [copy(group) for group in shape_groups]
        return [_Scene(canvas_width, canvas_height, held, groups)]

    @staticmethod
    def apply(
        width: int,
        height: int,
        num_samples_x: int,
        num_samples_y: int,
        seed: int,
        background_image: Tensor | None,
        scene: _Scene,
    ) -> Tensor:
        """Render a scene.

        Args:
            width, height: of the picture in pixels, to which the canvas is stretched.
            num_samples_x, num_samples_y: the larger one counts for both axes.
            seed: not used.
            background_image: (height, width, 4), RGBA with straight alpha; None is transparent.
            scene: what `serialize_scene` returned.

        Returns:
            (height, width, 4), RGBA with straight alpha, on `get_device()`. Gradients flow to
            all tensors of the shapes, colours and maps.

        Raises:
            ClipagError: shapes, colours or the background do not fit, or are not finite.
        """
        start = time.perf_counter()
        groups = to_groups(scene.shapes, scene.groups, _state.device)
        if (width, height) != (scene.width, scene.height):
            groups = _stretched(groups, width / scene.width, height / scene.height)
        image = render([groups], (height, width), max(num_samples_x, num_samples_y))[0]
        if background_image is not None:
            image = image + (1 - image[3:]) * _background(background_image, image)
        straight = torch.cat([image[:3] / image[3:].clamp_min(_LEAST_ALPHA), image[3:]])
        if _state.print_timing:
            print(f"Forward pass, time: {time.perf_counter() - start:.5f} s")
        return straight.permute(1, 2, 0)


def _stretched(groups: Sequence[Group], x: float, y: float) -> list[Group]:
    stretch = torch.tensor([x, y, 1], device=_state.device).diag()

    def stretched(group: Group) -> Group:
        matrix = group.shape_to_canvas
        return replace(
            group,
            fill=_back(group.fill, x, y),
            stroke=_back(group.stroke, x, y),
            shape_to_canvas=stretch if matrix is None else stretch.to(matrix) @ matrix,
        )

    return [stretched(group) for group in groups]


def _back(paint: Paint | None, x: float, y: float) -> Paint | None:
    """Have a gradient asked in pixels of the picture answer in those of the canvas."""
    if paint is None or isinstance(paint, Tensor):
        return paint
    ask: Callable[[Tensor], Tensor] = paint
    return lambda points: ask(points / points.new_tensor([x, y]))


def _background(background: Tensor, image: Tensor) -> Tensor:
    """Return a background as premultiplied RGBA (4, H, W)."""
    _, height, width = image.shape
    if background.shape != (height, width, 4):
        raise ClipagError(
            f"background_image has shape {tuple(background.shape)}: give ({height}, {width}, 4), "
            "RGBA."
        )
    behind = background.to(image).permute(2, 0, 1)
    return torch.cat([behind[:3] * behind[3:], behind[3:]])


def imwrite(
    img: Tensor | np.ndarray[Any, Any], filename: str, gamma: float = 2.2, normalize: bool = False
) -> None:
    """Write a picture, and make its folder.

    Args:
        img: (H, W) or (H, W, C), grey, RGB or RGBA, in [0, 1] as it is or made so.
        filename: its ending names the format.
        gamma: colours are raised to 1 / gamma.
        normalize: stretch the numbers to [0, 1] first.
    """
    pixels = img.detach().cpu().numpy() if isinstance(img, Tensor) else img
    if normalize and np.ptp(pixels) > 0:
        pixels = (pixels - pixels.min()) / np.ptp(pixels)
    pixels = np.atleast_3d(pixels).clip(0, 1)
    pixels[..., :3] **= 1 / gamma
    pixels = (pixels * 255).round().astype(np.uint8)
    target = _File(filename)
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_beside(target) as temporary:
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(temporary)


def save_svg(
    filename: str,
    width: int,
    height: int,
    shapes: Sequence[Shape],
    shape_groups: Sequence[ShapeGroup],
    use_gamma: bool = False,
) -> None:
    """Write a scene as SVG: all shapes of every group, as paths on the canvas.

    Args:
        filename: where to.
        width, height: of the canvas.
        shapes: what the groups refer to.
        shape_groups: painted in order.
        use_gamma: must be false: the picture is written as it is rendered.

    Raises:
        ClipagError: `use_gamma` is true, or the scene cannot be rendered either.
        OSError: the file cannot be written.
    """
    if use_gamma:
        raise ClipagError("use_gamma=True is not written to SVG: leave it out.")
    groups = to_groups(shapes, shape_groups, torch.device("cpu"))
    write_svg(filename, groups, (height, width))
