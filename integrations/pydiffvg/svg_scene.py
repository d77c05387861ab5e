"""Read SVG into diffvg's shapes. svgelements parses units, styles, maps and `use`."""

from collections.abc import Iterator, Sequence
from io import StringIO
from math import ceil, hypot, tau
from pathlib import Path as File
from types import ModuleType
from typing import Any
from warnings import warn
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import torch
from torch import Tensor

from clipag_plugins.errors import ClipagError, library
from clipag_plugins.integrations.pydiffvg.shapes import (
    Circle,
    Color,
    Ellipse,
    Path,
    Polygon,
    Rect,
    Shape,
    ShapeGroup,
)
from clipag_plugins.integrations.pydiffvg.svg_limits import check_growth, refuse_damaged
from clipag_plugins.integrations.pydiffvg.svg_tree import (
    is_visible,
    leave_out_undrawn,
    reference,
    tag,
)
from clipag_plugins.integrations.vector.paints import LinearGradient, RadialGradient

# A path is closed if its ends are closer than this, in pixels.
_CLOSED_BELOW = 1e-5


@refuse_damaged
def svg_to_scene(filename: str | File) -> tuple[int, int, list[Shape], list[ShapeGroup]]:
    """Read an SVG file.

    Paths and their stroke widths are mapped to the canvas. Other shapes keep their coordinates,
    and their group has the map as `shape_to_canvas`. The opacity of an element, or of the <g>
    around it, becomes the opacity of its paints. Text and pictures are skipped, with a warning.
    Clips, masks, markers and filters are not applied.

    Returns:
        Width and height of the canvas, in units of the viewBox as in diffvg, or in pixels if there
        is no viewBox; the shapes; and a group for each element.

    Raises:
        ClipagError: the file is not SVG or has no size, or svgelements is not installed.
        OSError: the file cannot be read.
    """
    svg = library("svgelements", "svg")
    try:
        root = ElementTree.parse(filename).getroot()
    except ElementTree.ParseError as error:
        raise ClipagError(f"{filename} is not SVG: {error}.") from error
    if tag(root) != "svg":
        raise ClipagError(f"{filename} is not SVG: its root is <{tag(root)}>.")
    check_growth(root, filename)
    box = root.get("viewBox", "").replace(",", " ").split()
    if len(box) == 4:
        root.set("width", box[2])
        root.set("height", box[3])
    elif any(root.get(side, "%").endswith("%") for side in ("width", "height")):
        raise ClipagError(
            f"{filename} has no size: give its <svg> a viewBox, or a width and a height."
        )
    leave_out_undrawn(svg, root)
    text = ElementTree.tostring(root, encoding="unicode")
    drawing = svg.SVG.parse(StringIO(text), reify=False)
    paints = _Paints(svg, root, (drawing.width, drawing.height))
    shapes: list[Shape] = []
    groups: list[ShapeGroup] = []
    for element in filter(is_visible, drawing.elements()):
        if isinstance(element, svg.Text | svg.Image):
            warn(f"{filename}: <{element.values['tag']}> is skipped.", stacklevel=2)
        if not isinstance(element, svg.Shape):
            continue
        new_shapes = _shapes(svg, element)
        if not new_shapes:
            continue
        matrix = _matrix(element.transform)
        for shape in new_shapes:
            shape.id = element.id or ""
            shape.stroke_width = torch.tensor(element.stroke_width / 2)
            if isinstance(shape, Path):
                shape.points = _map(matrix, shape.points)
                shape.stroke_width *= torch.linalg.det(matrix[:2, :2]).abs().sqrt()
        is_mapped = isinstance(new_shapes[0], Path)
        group = ShapeGroup(
            torch.arange(len(shapes), len(shapes) + len(new_shapes)),
            fill_color=paints.read("fill", element),
            stroke_color=paints.read("stroke", element),
            use_even_odd_rule=element.values.get("fill-rule") == "evenodd",
            shape_to_canvas=torch.eye(3) if is_mapped else matrix,
            id=element.id or "",
        )
        groups.append(group)
        shapes += new_shapes
    return round(drawing.width), round(drawing.height), shapes, groups


def from_svg_path(
    path_str: str, shape_to_canvas: Tensor | None = None, force_close: bool = False
) -> list[Path]:
    """Return a path for each part of the commands in the `d` of an SVG path.

    Args:
        path_str: the commands of the path.
        shape_to_canvas: (3, 3), a map of the points; None for no map.
        force_close: close every part, with a line if its ends differ.
    """
    svg = library("svgelements", "svg")
    paths = _paths(svg, svg.Path(path_str), force_close)
    if shape_to_canvas is not None:
        for path in paths:
            path.points = _map(shape_to_canvas, path.points)
    return paths


def _matrix(transform: Any) -> Tensor:
    a, b, c, d, e, f = (float(getattr(transform, name)) for name in "abcdef")
    return torch.tensor([[a, c, e], [b, d, f], [0, 0, 1]])


def _map(matrix: Tensor, points: Tensor) -> Tensor:
    return points @ matrix[:2, :2].mT + matrix[:2, 2]


def _pair(x: float, y: float) -> Tensor:
    return torch.tensor([float(x), float(y)])


# ------------------------------------------------------------------------------------ shapes


def _shapes(svg: ModuleType, element: Any) -> Sequence[Shape]:
    if isinstance(element, svg.Circle | svg.Ellipse):
        centre = _pair(element.cx, element.cy)
        if element.rx == element.ry:
            return [Circle(torch.tensor(float(element.rx)), centre)]
        return [Ellipse(_pair(element.rx, element.ry), centre)]
    if isinstance(element, svg.Rect) and not element.rx and not element.ry:
        corner = _pair(element.x, element.y)
        return [Rect(corner, corner + _pair(element.width, element.height))]
    if isinstance(element, svg.Polygon | svg.Polyline):
        points = torch.tensor([[point.x, point.y] for point in element.points])
        return [Polygon(points, isinstance(element, svg.Polygon))] if len(points) > 1 else []
    return _paths(svg, svg.Path(element.segments(transformed=False)))


def _paths(svg: ModuleType, path: Any, force_close: bool = False) -> list[Path]:
    paths = (_path(svg, part, force_close) for part in path.as_subpaths())
    return [path for path in paths if path is not None]


def _without_arcs(svg: ModuleType, part: Any) -> Iterator[Any]:
    """Yield the segments of a path with cubic curves for arcs.

    They are svgelements' own curves, but its method for a whole path takes quadratic time.
    """
    for segment in part:
        if isinstance(segment, svg.Arc):
            yield from segment.as_cubic_curves(ceil(abs(segment.sweep) / (tau * 0.1)))
        else:
            yield segment


def _path(svg: ModuleType, part: Any, force_close: bool) -> Path | None:
    points: list[Any] = []
    degrees: list[int] = []
    close = force_close
    for segment in _without_arcs(svg, part):
        if isinstance(segment, svg.Move):
            points.append(segment.end)
        elif isinstance(segment, svg.Close):
            close = True
        elif isinstance(segment, svg.QuadraticBezier):
            points += [segment.control, segment.end]
            degrees.append(1)
        elif isinstance(segment, svg.CubicBezier):
            points += [segment.control1, segment.control2, segment.end]
            degrees.append(2)
        else:
            points.append(segment.end)
            degrees.append(0)
    if not degrees:
        return None
    first, last = points[0], points[-1]
    if len(points) > 2 and hypot(first.x - last.x, first.y - last.y) < _CLOSED_BELOW:
        points.pop()  # the start of a closed path is not repeated
        close = True
    elif close:
        degrees.append(0)
    return Path(torch.tensor(degrees), torch.tensor([[p.x, p.y] for p in points]), close)


# ------------------------------------------------------------------------------------ paints


class _Paints:
    """Reads the colours and gradients of a file."""

    def __init__(self, svg: ModuleType, root: Element, size: tuple[float, float]) -> None:
        self._svg = svg
        self._size = size
        self._nodes = {
            node.get("id"): node for node in root.iter() if tag(node).endswith("Gradient")
        }

    def read(self, kind: str, element: Any) -> Color | None:
        """Return the paint of an element's fill or stroke."""
        values = element.values
        alpha = _number(values.get(f"{kind}-opacity", "1")) * _number(values.get("opacity", "1"))
        text = values.get(kind) or ("black" if kind == "fill" else "none")
        if text.startswith("url("):
            name = text[4:].partition(")")[0].strip(" '\"#")
            return self._gradient(name, element, alpha) if name in self._nodes else None
        color = self._rgba(text, alpha)
        return None if color is None else torch.tensor(color)

    def _rgba(self, text: str, alpha: float) -> list[float] | None:
        color = self._svg.Color(text)
        if color.value is None:
            return None
        rgb = (color.red / 255, color.green / 255, color.blue / 255)
        return [*rgb, color.opacity * alpha]

    def _gradient(self, name: str, element: Any, alpha: float) -> Color | None:
        attributes: dict[str, str] = {}
        stops: list[Element] = []
        visited = set()
        current: str | None = name
        # A gradient inherits missing attributes from the one that it refers to.
        while current in self._nodes and current not in visited:
            visited.add(current)
            node = self._nodes[current]
            attributes = {**node.attrib, **attributes}
            stops = stops or [child for child in node if tag(child) == "stop"]
            current = reference(node)
        if not stops:
            return None
        pairs = [self._stop(stop, alpha) for stop in stops]
        # SVG raises an offset that is below the previous one to the previous one.
        offsets = torch.tensor([offset for offset, _ in pairs]).cummax(0).values
        colors = torch.tensor([color for _, color in pairs])

        whole_width, whole_height = self._size
        matrix = _matrix(element.transform)
        if attributes.get("gradientUnits") != "userSpaceOnUse":
            # Coordinates are fractions of the element's bounding box.
            left, top, right, bottom = map(float, element.bbox(transformed=False))
            box = [[right - left, 0, left], [0, bottom - top, top], [0, 0, 1]]
            matrix = matrix @ torch.tensor(box)
            whole_width = whole_height = 1
        if "gradientTransform" in attributes:
            matrix = matrix @ _matrix(self._svg.Matrix(attributes["gradientTransform"]))

        def point(x: str, y: str, *defaults: str) -> Tensor:
            at_x = _number(attributes.get(x, defaults[0]), whole_width)
            return _map(matrix, _pair(at_x, _number(attributes.get(y, defaults[1]), whole_height)))

        if tag(self._nodes[name]) == "linearGradient":
            begin, end = point("x1", "y1", "0%", "0%"), point("x2", "y2", "100%", "0%")
            return LinearGradient(begin, end, offsets, colors)
        whole = hypot(whole_width, whole_height) / hypot(1, 1)
        radius = _number(attributes.get("r", "50%"), whole) * matrix[:2, :2].norm(dim=0)
        return RadialGradient(point("cx", "cy", "50%", "50%"), radius, offsets, colors)

    def _stop(self, stop: Element, alpha: float) -> tuple[float, list[float]]:
        style = (part.partition(":") for part in stop.get("style", "").split(";"))
        attributes = {**stop.attrib, **{name.strip(): value.strip() for name, _, value in style}}
        alpha *= _number(attributes.get("stop-opacity", "1"))
        color = self._rgba(attributes.get("stop-color", "black"), alpha) or [0.0, 0.0, 0.0, 0.0]
        return min(max(_number(attributes.get("offset", "0")), 0), 1), color


def _number(text: str, whole: float = 1) -> float:
    """Read a number, or a percentage of `whole`."""
    return float(text[:-1]) / 100 * whole if text.endswith("%") else float(text.rstrip("px"))
