"""diffvg's shapes and groups, and their conversion for the renderer.

diffvg differs from SVG in two ways: `stroke_width` is half the width, and groups are filled by the
even-odd rule by default. All coordinates are in pixels of the canvas.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.vector import paths
from clipag_plugins.integrations.vector.paints import LinearGradient, RadialGradient

Color = Tensor | LinearGradient | RadialGradient


def _one() -> Tensor:
    return torch.tensor(1.0)


def _identity() -> Tensor:
    return torch.eye(3)


# Shapes are compared by identity (eq=False), since comparing tensors gives tensors.
@dataclass(eq=False)
class Circle:
    """A circle: `radius` (), `center` (2,)."""

    radius: Tensor
    center: Tensor
    stroke_width: Tensor = field(default_factory=_one)
    id: str = ""


@dataclass(eq=False)
class Ellipse:
    """An ellipse: `radius` (2,), its half-axes, and `center` (2,)."""

    radius: Tensor
    center: Tensor
    stroke_width: Tensor = field(default_factory=_one)
    id: str = ""


@dataclass(eq=False)
class Path:
    """Lines and curves through `points` (N, 2): see `paths.Path`.

    `use_distance_approx` is ignored: distances are always those to fine polylines.
    """

    num_control_points: Tensor
    points: Tensor
    is_closed: bool
    stroke_width: Tensor = field(default_factory=_one)
    id: str = ""
    use_distance_approx: bool = False


@dataclass(eq=False)
class Polygon:
    """Straight lines through `points` (N, 2)."""

    points: Tensor
    is_closed: bool
    stroke_width: Tensor = field(default_factory=_one)
    id: str = ""


@dataclass(eq=False)
class Rect:
    """The rectangle between the corners `p_min` and `p_max`, both (2,)."""

    p_min: Tensor
    p_max: Tensor
    stroke_width: Tensor = field(default_factory=_one)
    id: str = ""


Shape = Circle | Ellipse | Path | Polygon | Rect


@dataclass(eq=False)
class ShapeGroup:
    """Shapes that are painted as one.

    Args:
        shape_ids: (n,), integers, indices into the list of shapes.
        fill_color, stroke_color: (4,), RGBA with straight alpha in [0, 1], or a gradient, or None.
        use_even_odd_rule: whether odd winding numbers are inside, or all that are not zero.
        shape_to_canvas: (3, 3), an affine map of the shapes. Gradients are not mapped.
    """

    shape_ids: Tensor
    fill_color: Color | None
    use_even_odd_rule: bool = True
    stroke_color: Color | None = None
    shape_to_canvas: Tensor = field(default_factory=_identity)
    id: str = ""


def to_groups(
    shapes: Sequence[Shape], groups: Sequence[ShapeGroup], device: torch.device
) -> list[paths.Group]:
    """Return groups of paths for the renderer, on a device.

    Raises:
        ClipagError: a group refers to a missing shape, a colour is not RGBA, or a shape is of
            another type or has a separate width for each point.
    """
    made_paths = [_path(number, shape, device) for number, shape in enumerate(shapes)]
    return [_group(number, group, made_paths, device) for number, group in enumerate(groups)]


def _path(number: int, shape: Shape, device: torch.device) -> paths.Path:
    def on_device(value: Tensor | float) -> Tensor:
        tensor = torch.as_tensor(value).to(device)
        return tensor if tensor.is_floating_point() else tensor.float()

    if not isinstance(shape, Shape):
        raise ClipagError(
            f"Shape {number} is a {type(shape).__name__}: give a Path, Circle, Ellipse, Rect or "
            "Polygon."
        )
    width = 2 * on_device(shape.stroke_width)
    if width.numel() != 1:
        raise ClipagError(
            f"Shape {number} has {width.numel()} stroke widths: give it one, since strokes "
            "of varying width cannot be drawn."
        )
    width = width.reshape(())
    if isinstance(shape, Circle | Ellipse):
        return paths.ellipse(on_device(shape.center), on_device(shape.radius), width)
    if isinstance(shape, Rect):
        return paths.rectangle(on_device(shape.p_min), on_device(shape.p_max), width)
    if isinstance(shape, Polygon):
        return paths.polygon(on_device(shape.points), shape.is_closed, width)
    return paths.Path(on_device(shape.points), shape.num_control_points, shape.is_closed, width)


def _group(
    number: int, group: ShapeGroup, made_paths: Sequence[paths.Path], device: torch.device
) -> paths.Group:
    ids = torch.as_tensor(group.shape_ids).tolist()
    for index in ids:
        if not 0 <= index < len(made_paths):
            raise ClipagError(
                f"Group {number} names shape {index}, but there are {len(made_paths)}."
            )
    matrix = group.shape_to_canvas
    has_map = matrix.requires_grad or not torch.equal(matrix, torch.eye(3).to(matrix))
    return paths.Group(
        [made_paths[index] for index in ids],
        fill=_paint(f"fill_color of group {number}", group.fill_color, device),
        stroke=_paint(f"stroke_color of group {number}", group.stroke_color, device),
        use_even_odd_rule=group.use_even_odd_rule,
        shape_to_canvas=matrix.to(device) if has_map else None,
    )


def _paint(name: str, color: Color | None, device: torch.device) -> paths.Paint | None:
    if isinstance(color, Tensor):
        if color.shape != (4,):
            raise ClipagError(f"The {name} has shape {tuple(color.shape)}: give 4 numbers, RGBA.")
        return color.to(device)
    return None if color is None else color.to(device)
