"""Paths of Bézier segments, and groups of paths that are painted in order.

The terms are those of diffvg (Li et al., "Differentiable Vector Graphics Rasterization", 2020): a
path has points and, for each of its segments, a number of control points: 0 for a line, 1 for a
quadratic and 2 for a cubic curve. All coordinates are in pixels, x right and y down. The first
pixel has its corner at (0, 0) and its centre at (0.5, 0.5).

The renderer sees only `Curves`, cubic curves in flat tensors. Lines and quadratics are raised to
cubics exactly. A circle is eight cubics, accurate to 1e-5 of its radius.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clipag_plugins.errors import ClipagError

# A colour (4,), RGBA with straight alpha in [0, 1], or a function from points (N, 2), in pixels of
# the canvas, to colours (N, 4).
Paint = Tensor | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """A path of lines and Bézier curves.

    Args:
        points: (N, 2), the ends and control points of all segments in order. An end that two
            segments share is given once. The start of a closed path is not repeated.
        num_control_points: (S,), integers 0, 1 or 2.
        is_closed: whether the last segment ends where the first starts.
        stroke_width: full width in pixels, as in SVG (diffvg's `stroke_width` is half of it).
    """

    points: Tensor
    num_control_points: Tensor
    is_closed: bool
    stroke_width: Tensor | float = 1.0


def polygon(points: Tensor, is_closed: bool = True, stroke_width: Tensor | float = 1.0) -> Path:
    """Return straight lines through points (N, 2)."""
    segments = len(points) if is_closed else max(len(points) - 1, 0)
    return Path(points, torch.zeros(segments, dtype=torch.long), is_closed, stroke_width)


def rectangle(p_min: Tensor, p_max: Tensor, stroke_width: Tensor | float = 1.0) -> Path:
    """Return the rectangle between two corners (2,)."""
    (left, top), (right, bottom) = p_min, p_max
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom])
    return polygon(corners.view(4, 2), stroke_width=stroke_width)


def ellipse(center: Tensor, radius: Tensor, stroke_width: Tensor | float = 1.0) -> Path:
    """Return the ellipse around `center` (2,) with half-axes `radius`, (2,) or a scalar."""
    eighth = math.pi / 4
    reach = 4 / 3 * math.tan(eighth / 4)
    angles = torch.arange(8, dtype=torch.float64) * eighth
    ends = torch.stack([angles.cos(), angles.sin()], dim=1)
    along = torch.stack([-angles.sin(), angles.cos()], dim=1) * reach
    following = ends.roll(-1, 0) - along.roll(-1, 0)
    unit = torch.stack([ends, ends + along, following], dim=1).view(24, 2).to(center)
    return Path(center + unit * radius, torch.full((8,), 2), True, stroke_width)


def circle(center: Tensor, radius: Tensor, stroke_width: Tensor | float = 1.0) -> Path:
    """Return the circle around `center` (2,) with a scalar radius."""
    return ellipse(center, radius, stroke_width)


@dataclass(frozen=True)
class Group:
    """Paths that are painted as one shape: filled first, then stroked, as in SVG.

    Args:
        paths: where they overlap, their winding numbers add up, which can cut holes. Their strokes
            are one shape that is painted once.
        fill: paint of the inside, or None. An open path is filled as if a line closed it.
        stroke: paint of the stroke, or None. Ends and corners are round.
        use_even_odd_rule: whether odd winding numbers are inside, or all that are not zero.
        shape_to_canvas: (3, 3), an affine map of the points. Stroke widths grow by the square root
            of its determinant. None for no map.
    """

    paths: Sequence[Path]
    fill: Paint | None = None
    stroke: Paint | None = None
    use_even_odd_rule: bool = False
    shape_to_canvas: Tensor | None = None


class Curves(NamedTuple):
    """M cubic Bézier curves. The curves of one path follow each other.

    Attributes:
        control: control points in pixels, (M, 4, 2).
        radius: half the width of the stroke, (M,).
        path: the number of the path that the curve belongs to, (M,).
        layer: the number of the layer that it is painted as, (M,).
    """

    control: Tensor
    radius: Tensor
    path: Tensor
    layer: Tensor


# Row d raises a segment with d control points to a cubic.
_RAISE = (
    ((1, 0, 0, 0), (2 / 3, 1 / 3, 0, 0), (1 / 3, 2 / 3, 0, 0), (0, 1, 0, 0)),
    ((1, 0, 0, 0), (1 / 3, 2 / 3, 0, 0), (0, 2 / 3, 1 / 3, 0), (0, 0, 1, 0)),
    ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
)


def to_curves(groups: Sequence[Group]) -> Curves:
    """Return the curves of groups. The layer of each curve is the number of its group.

    Args:
        groups: at least one of them has a path.

    Raises:
        ClipagError: the points of a path do not fit its segments.
    """
    paths = [path for group in groups for path in group.paths]
    points = torch.cat([path.points for path in paths])
    device = points.device

    def count(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    degree = torch.cat([path.num_control_points.to(device, torch.long) for path in paths])
    segments = count([len(path.num_control_points) for path in paths])
    sizes = count([len(path.points) for path in paths])
    is_open = count([not path.is_closed for path in paths])
    _check(degree, segments, sizes, is_open)

    owner = torch.arange(len(paths), device=device).repeat_interleave(segments)
    first = torch.cumsum(sizes, 0) - sizes
    # Each earlier segment has control points and an end; each earlier open path, one point more.
    start = torch.cumsum(degree + 1, 0) - (degree + 1) + (torch.cumsum(is_open, 0) - is_open)[owner]
    corner = torch.arange(4, device=device).minimum(degree[:, None] + 1)
    within = start[:, None] - first[owner][:, None] + corner
    # A closed path ends at its start.
    control = points[first[owner][:, None] + within % sizes[owner][:, None]]
    control = points.new_tensor(_RAISE)[degree] @ control

    radius = torch.stack([torch.as_tensor(path.stroke_width).to(points) for path in paths]) / 2
    if any(group.shape_to_canvas is not None for group in groups):
        identity = torch.eye(3).to(points)
        maps = torch.stack(
            [
                identity if group.shape_to_canvas is None else group.shape_to_canvas.to(points)
                for group in groups
                for _ in group.paths
            ]
        )[:, :2]
        control = control @ maps[owner, :, :2].mT + maps[owner, None, :, 2]
        radius = radius * torch.linalg.det(maps[:, :, :2]).abs().sqrt()
    layer = count([index for index, group in enumerate(groups) for _ in group.paths])
    return Curves(control, radius[owner], owner, layer[owner])


def _check(degree: Tensor, segments: Tensor, sizes: Tensor, is_open: Tensor) -> None:
    odd = ((degree < 0) | (degree > 2)).nonzero()
    if len(odd):
        raise ClipagError(
            f"num_control_points holds {int(degree[odd[0]])}: it must be 0 for a line, 1 for a "
            "quadratic or 2 for a cubic segment."
        )
    owner = torch.arange(len(segments), device=degree.device).repeat_interleave(segments)
    needed = is_open.index_add(0, owner, degree + 1)
    wrong = (needed != sizes).nonzero()
    if len(wrong):
        path = int(wrong[0])
        raise ClipagError(
            f"Path {path} has {int(sizes[path])} points, but its {int(segments[path])} segments, "
            f"{'open' if is_open[path] else 'closed'}, need {int(needed[path])}: correct points or "
            "num_control_points."
        )
