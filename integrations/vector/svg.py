"""Write drawings as SVG, so that a browser shows what the renderer drew.

Maps to the canvas are applied to the points and the stroke widths, as the renderer does. Colours
are rounded to 8 bits, which every program can read; opacities are not rounded.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import torch
from torch import Tensor

from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside
from clipag_plugins.integrations.vector.paints import (
    LinearGradient,
    RadialGradient,
    colour_between,
    stops_in_order,
)
from clipag_plugins.integrations.vector.paths import Group, Paint, Path

# Characters that XML forbids, even escaped.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def write_svg(
    file: File | str,
    groups: Sequence[Group],
    size: tuple[int, int],
    background: Tensor | None = None,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write a drawing to a file. An existing file is replaced only when all is written.

    Args:
        file: where to write.
        groups: painted in order.
        size: height and width of the canvas in pixels.
        background: RGB in [0, 1] of a rectangle behind the drawing, (3,); None for none.
        metadata: written into the description of the file, one line each.

    Raises:
        ClipagError: a number is not finite, points do not fit their segments, or a paint is a
            function, which SVG cannot express.
        OSError: the file cannot be written.
    """
    text = to_svg(groups, size, background, metadata)
    with write_beside(File(file)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_svg(
    groups: Sequence[Group],
    size: tuple[int, int],
    background: Tensor | None = None,
    metadata: Mapping[str, object] | None = None,
) -> str:
    """Return a drawing as the text of an SVG file; see `write_svg`."""
    height, width = size
    sides = {"width": str(width), "height": str(height)}
    box = {**sides, "viewBox": f"0 0 {width} {height}"}
    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **box})
    if metadata:
        lines = "\n".join(f"{name}: {value}" for name, value in metadata.items())
        SubElement(root, "desc").text = _NOT_XML.sub("", lines)
    gradients = SubElement(root, "defs")
    if background is not None:
        SubElement(root, "rect", {**sides, "fill": _hex(_values(background))})
    drawing = {"fill": "none", "stroke-linecap": "round", "stroke-linejoin": "round"}
    canvas = SubElement(root, "g", drawing)
    for group in groups:
        if group.paths:
            _write_group(canvas, gradients, group)
    if not len(gradients):
        root.remove(gradients)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _write_group(canvas: Element, gradients: Element, group: Group) -> None:
    described = [_describe(path, group.shape_to_canvas) for path in group.paths]
    fill, stroke = {}, {}
    if group.fill is not None:
        fill = _paint("fill", group.fill, gradients)
        if group.use_even_odd_rule:
            fill["fill-rule"] = "evenodd"
    if group.stroke is not None:
        stroke = _paint("stroke", group.stroke, gradients)
    widths = {width for _, width in described}
    outline = "".join(outline for outline, _ in described)
    if len(widths) == 1 or not stroke:
        if stroke:
            stroke["stroke-width"] = widths.pop()
        SubElement(canvas, "path", {"d": outline, **fill, **stroke})
        return
    # An SVG element has one width. The strokes are still one shape, so a <g> carries the opacity.
    if fill:
        SubElement(canvas, "path", {"d": outline, **fill})
    one = SubElement(canvas, "g", {"opacity": stroke.pop("stroke-opacity", "1")})
    for outline, width in described:
        SubElement(one, "path", {"d": outline, **stroke, "stroke-width": width})


def _describe(path: Path, shape_to_canvas: Tensor | None) -> tuple[str, str]:
    """Return the outline of a path on the canvas, and the full width of its stroke."""
    points = path.points.detach()
    width = torch.as_tensor(path.stroke_width).detach()
    if shape_to_canvas is not None:
        matrix = shape_to_canvas.detach().to(points)[:2]
        points = points @ matrix[:, :2].mT + matrix[:, 2]
        width = width * torch.linalg.det(matrix[:, :2]).abs().sqrt()
    degrees = path.num_control_points.tolist()
    needed = sum(degrees) + len(degrees) + (not path.is_closed)
    if len(points) != needed or not degrees:
        raise ClipagError(
            f"A path has {len(points)} points, but its {len(degrees)} segments need {needed}: "
            "correct points or num_control_points."
        )
    corners = [f"{_number(x)} {_number(y)}" for x, y in _values(points)]
    outline, last = f"M{corners[0]}", 0
    for number, degree in enumerate(degrees, start=1):
        following = [corners[(last + step) % needed] for step in range(1, degree + 2)]
        last += degree + 1
        # Z draws the line back to the start.
        if degree or not path.is_closed or number < len(degrees):
            outline += f" {'LQC'[degree]}{' '.join(following)}"
    return outline + ("Z" if path.is_closed else ""), _number(_values(width))


def _paint(kind: str, paint: Paint, gradients: Element) -> dict[str, str]:
    """Return the attributes of a fill or stroke; a gradient is added to `gradients`."""
    if isinstance(paint, Tensor):
        *colour, alpha = _values(paint)
        return {kind: _hex(colour), f"{kind}-opacity": _number(alpha)}
    if not isinstance(paint, LinearGradient | RadialGradient):
        raise ClipagError(
            f"SVG cannot express the paint {paint!r}: paint with a colour or a gradient."
        )
    name = f"gradient{len(gradients)}"
    shared = {"id": name, "gradientUnits": "userSpaceOnUse"}
    offsets, colours = stops_in_order(paint.offsets.detach(), paint.stop_colors.detach())
    if isinstance(paint, LinearGradient):
        if torch.equal(paint.begin, paint.end):
            # SVG would paint the last colour, the renderer paints that of offset 0.
            return _paint(
                kind, colour_between(offsets.new_zeros(1), offsets, colours)[0], gradients
            )
        # SVG's offsets are from 0 to 1, so the line is made longer where there are others.
        first, last = min(0.0, float(offsets[0])), max(1.0, float(offsets[-1]))
        along = paint.end - paint.begin
        ends = [paint.begin + along * first, paint.end + along * (last - 1)]
        (x1, y1), (x2, y2) = map(_values, ends)
        line = {"x1": _number(x1), "y1": _number(y1), "x2": _number(x2), "y2": _number(y2)}
        gradient = SubElement(gradients, "linearGradient", {**shared, **line})
    else:
        offsets, colours = _from_centre(offsets, colours)
        first, last = 0.0, max(1.0, float(offsets[-1]))
        # SVG only has circles: an ellipse is a mapped circle of radius 1.
        (rx, ry), (cx, cy) = _values(paint.radius.expand(2) * last), _values(paint.center)
        matrix = " ".join(map(_number, (rx, 0, 0, ry, cx, cy)))
        disc = {"cx": "0", "cy": "0", "r": "1", "gradientTransform": f"matrix({matrix})"}
        gradient = SubElement(gradients, "radialGradient", {**shared, **disc})
    offsets = (offsets - first) / (last - first)
    for offset, (*colour, alpha) in zip(_values(offsets), _values(colours), strict=True):
        stop = {"stop-color": _hex(colour), "stop-opacity": _number(alpha)}
        SubElement(gradient, "stop", {"offset": _number(offset), **stop})
    return {kind: f"url(#{name})"}


def _from_centre(offsets: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Replace stops below 0, which no radius has, by one at 0."""
    is_below = offsets < 0
    if not is_below.any():
        return offsets, colours
    zero = offsets.new_zeros(1)
    at_zero = colour_between(zero, offsets, colours)
    return torch.cat([zero, offsets[~is_below]]), torch.cat([at_zero, colours[~is_below]])


def _values(tensor: Tensor) -> Any:
    """Return the numbers of a tensor, nested as it is."""
    if not tensor.isfinite().all():
        raise ClipagError(
            "The drawing holds NaN or infinity: correct the input, or lower the learning rate of "
            "the ascent."
        )
    return tensor.tolist()


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * min(max(c, 0), 1)):02x}" for c in colour)


def _number(value: float) -> str:
    return f"{value:.7g}"
