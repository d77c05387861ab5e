"""diffvg's Python interface (Li et al., 2020) on the renderer in torch, without a compiler.

It has the names that drawing scripts use: shapes, groups, gradients, `RenderFunction`, `imwrite`,
and reading and writing SVG. It does not support distance fields (`OutputType.sdf`), pixel filters
other than the default, `OptimizableSvg`, or strokes of varying width.

Two differences are deliberate. First, diffvg samples random points in each pixel. This renderer
computes the coverage of a fixed grid of samples, so nothing is random and `seed` is ignored.
Second, where a shape covers part of a pixel without a background, diffvg averages its colour with
the black of the empty samples, and scripts that then multiply by alpha draw dark fringes. This
renderer keeps the colour of the shape, so such scripts draw what the SVG shows. Scripts that
compare RGBA directly see harder edges in the colours than with diffvg, and the same alpha.
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

# Below this alpha, colours fade to black. This keeps the gradient of colour / alpha bounded, and
# changes a picture on any background by less than one of 256 levels.
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
    """Choose the device that renders, whatever device the shapes are on."""
    _state.device = torch.device(d)
    _state.use_gpu = _state.device.type == "cuda"


def get_device() -> torch.device:
    """Return the device that renders."""
    return _state.device


def set_use_gpu(v: bool) -> None:
    """Return to the CPU if `v` is false. To choose a GPU, call `set_device`."""
    _state.use_gpu = v
    if not v:
        _state.device = torch.device("cpu")


def get_use_gpu() -> bool:
    """Return whether a GPU is to be used."""
    return _state.use_gpu


def set_print_timing(val: bool) -> None:
    """Choose whether every rendering prints its time."""
    _state.print_timing = val


class OutputType(IntEnum):
    """The kind of result. Only `color` is supported."""

    color = 1
    sdf = 2


class FilterType(Enum):
    """Pixel filters. Only `box` is supported."""

    box = 0
    tent = 1
    parabolic = 2
    hann = 3


class PixelFilter:
    """A pixel filter. Only the default, a box of radius 0.5, is supported."""

    def __init__(self, type: FilterType, radius: Tensor | float = 0.5) -> None:
        self.type = type
        self.radius = radius


class _Scene(NamedTuple):
    width: int
    height: int
    shapes: list[Shape]
    groups: list[ShapeGroup]


class RenderFunction:
    """Renders scenes; called like diffvg's autograd function."""

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
        """Return the arguments that `apply` takes after its first six.

        Args:
            canvas_width, canvas_height: of the canvas, in the units of the coordinates.
            shapes: the shapes that the groups refer to.
            shape_groups: painted in order.
            filter: must be a box of radius 0.5.
            output_type: must be `OutputType.color`.
            use_prefiltering: ignored, since coverage is always computed.
            eval_positions: must be empty.

        Raises:
            ClipagError: one of the last four has a value that cannot be rendered.
        """
        if output_type != OutputType.color:
            raise ClipagError("Distance fields cannot be rendered: ask for OutputType.color.")
        if eval_positions is not None and len(eval_positions):
            raise ClipagError(
                "eval_positions cannot be rendered: render the picture, and take pixels from it."
            )
        if filter is not None and (filter.type.name, float(filter.radius)) != ("box", 0.5):
            raise ClipagError(
                f"The pixel filter {filter.type.name} of radius {float(filter.radius):g} cannot be "
                "rendered: leave filter out, which is a box of radius 0.5."
            )
        # Shallow copies, as in diffvg: the scene refers to the current tensors.
        copies, groups = [copy(shape) for shape in shapes], [copy(group) for group in shape_groups]
        return [_Scene(canvas_width, canvas_height, copies, groups)]

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
            width, height: of the picture in pixels. The canvas is stretched to them.
            num_samples_x, num_samples_y: the larger one is used for both axes.
            seed: ignored.
            background_image: (height, width, 4), RGBA with straight alpha; None for transparent.
            scene: what `serialize_scene` returned.

        Returns:
            (height, width, 4), RGBA with straight alpha, on `get_device()`. Gradients flow to
            all tensors of the shapes, colours and maps.

        Raises:
            ClipagError: shapes, colours or the background have wrong shapes, or are not finite.
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
    """Return groups on a canvas that is stretched by factors x and y."""
    stretch = torch.tensor([x, y, 1], device=_state.device).diag()

    def stretched(group: Group) -> Group:
        matrix = group.shape_to_canvas
        return replace(
            group,
            fill=_stretched_paint(group.fill, x, y),
            stroke=_stretched_paint(group.stroke, x, y),
            shape_to_canvas=stretch if matrix is None else stretch.to(matrix) @ matrix,
        )

    return [stretched(group) for group in groups]


def _stretched_paint(paint: Paint | None, x: float, y: float) -> Paint | None:
    """Return a paint that maps points of the picture to the canvas before it is called."""
    if paint is None or isinstance(paint, Tensor):
        return paint
    color_at: Callable[[Tensor], Tensor] = paint
    return lambda points: color_at(points / points.new_tensor([x, y]))


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
    """Write a picture, and make its folder if it is missing.

    Args:
        img: (H, W) or (H, W, C), grey, RGB or RGBA. Values are clamped to [0, 1].
        filename: its ending determines the format.
        gamma: colours are raised to the power 1 / gamma.
        normalize: first stretch the values to [0, 1].
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
        filename: where to write.
        width, height: of the canvas in pixels.
        shapes: the shapes that the groups refer to.
        shape_groups: painted in order.
        use_gamma: must be false, since the colours are written as they are rendered.

    Raises:
        ClipagError: `use_gamma` is true, or the scene cannot be rendered.
        OSError: the file cannot be written.
    """
    if use_gamma:
        raise ClipagError("use_gamma=True is not supported: leave it out.")
    groups = to_groups(shapes, shape_groups, torch.device("cpu"))
    write_svg(filename, groups, (height, width))
