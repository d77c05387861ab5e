"""Coverage: which samples the strokes and fills of a drawing cover, and how much of each.

`renderer` describes the method. A sample is a pixel of the picture at the size at which it is
rendered. Lengths are in samples.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clipag_plugins.integrations.vector.paths import Curves

# Largest distance between a curve and its straight pieces. A filled curve needs a smaller one than
# a stroke: it loses the area that its chords cut off, while both sides of a stroke move together.
_STROKE_TOLERANCE = 0.05
_FILL_TOLERANCE = 0.01
_MOST_PIECES = 1024  # of a curve
# Half the width of an edge's ramp. It gives the ramp the variance of a pixel's box, which is 1/12
# in every direction.
_RAMP = math.sqrt(5 / 12)
# Fills are moved by this. Coverage has a kink where an edge lies exactly between two rows, as edges
# at whole pixels do, and such an edge would have no gradient.
_FILL_SHIFT = 2**-14


class Fragments(NamedTuple):
    """Where layers cover samples, all (N,).

    Attributes:
        sample: the sample's number, counted along all rows of all pictures.
        layer: number of the layer.
        coverage: share of the sample that is covered, in [0, 1].
    """

    sample: Tensor
    layer: Tensor
    coverage: Tensor


def columns_at(values: Tensor, index: Tensor) -> Tensor:
    """Return the columns `index` (N,) of values (C, K), as (C, N).

    `gather` has a faster gradient than indexing.
    """
    return values.gather(1, index.expand(len(values), -1))


def expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Number items, of which owner i has `counts[i]`.

    Args:
        counts: (n,), integers.

    Returns:
        The owner of each item and its number within the owner, both (sum of counts,).
    """
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = torch.cumsum(counts, 0) - counts
    number = torch.arange(len(owner), device=counts.device)
    return owner, number - first.index_select(0, owner)


def sort_fragments(sample: Tensor, layer: Tensor, layers: int) -> tuple[Tensor, Tensor, int]:
    """Sort fragments by sample, and those of one sample by layer.

    Args:
        sample, layer: (N,).
        layers: number of layers.

    Returns:
        The order (N,); for each sorted fragment the number of its pair of sample and layer, (N,);
        and how many different pairs there are.
    """
    key = sample * layers + layer
    if len(key) and int(key.max()) < 2**31:
        key = key.int()  # sorts twice as fast
    key, order = key.sort(stable=True)
    is_new = torch.ones_like(key, dtype=torch.bool)
    is_new[1:] = key[1:] != key[:-1]
    pair = torch.cumsum(is_new, 0) - 1
    return order, pair, int(pair[-1]) + 1 if len(pair) else 0


# ---------------------------------------------------------------------------- curves to pieces


class _Pieces(NamedTuple):
    """Straight pieces of curves: their ends (2, K), and the curve that each belongs to (K,)."""

    start: Tensor
    end: Tensor
    curve: Tensor


def _cut(curves: Curves, tolerance: float, height: int, width: int) -> _Pieces:
    """Cut curves into the fewest straight pieces that the tolerance allows.

    If the second differences of a cubic's control points are at most b, the distance between the
    cubic and n chords is at most (3/4) b / n² (Wang's formula).
    """
    with torch.no_grad():
        control = curves.control
        bend = (control[:, 2:] - 2 * control[:, 1:-1] + control[:, :-2]).norm(dim=2).amax(1)
        count = (0.75 * bend / tolerance).sqrt().ceil().clamp(1, _MOST_PIECES)
        # A curve outside the canvas needs one piece only, since that stays outside.
        reach = curves.radius[:, None] + _RAMP
        low, high = control.amin(1) - reach, control.amax(1) + reach
        is_outside = (high < 0).any(1) | (low > low.new_tensor([width, height])).any(1)
        count = count.where(~is_outside, 1).long()
    # A curve of n pieces has n + 1 nodes; Bernstein polynomials place them.
    owner, step = expand(count + 1)
    t = step / count[owner].to(control.dtype)
    s = 1 - t
    bernstein = torch.stack([s**3, 3 * s**2 * t, 3 * s * t**2, t**3])
    control = columns_at(curves.control.permute(2, 1, 0).flatten(0, 1), owner).view(2, 4, -1)
    nodes = (bernstein * control).sum(1)
    curve, step = expand(count)
    first = step + (torch.cumsum(count + 1, 0) - count - 1)[curve]
    return _Pieces(columns_at(nodes, first), columns_at(nodes, first + 1), curve)


# ------------------------------------------------------------------------------------- strokes


def cover_strokes(curves: Curves, image: Tensor, height: int, width: int) -> Fragments:
    """Return what strokes cover: for each layer and sample, by the piece that covers it most.

    Args:
        curves: the strokes.
        image: the picture of each layer, (L,).
        height, width: of a picture, in samples.
    """
    pieces = _cut(curves, _STROKE_TOLERANCE, height, width)
    capsules = torch.cat([pieces.start, pieces.end, columns_at(curves.radius[None], pieces.curve)])
    with torch.no_grad():
        layer = curves.layer[pieces.curve]
        piece, column, row = _samples_near(capsules, curves.path[pieces.curve], height, width)
        x, y = column + 0.5, row + 0.5
        candidates = capsules.index_select(1, piece)
        place = _nearest_place(x, y, candidates)
        coverage = _stroke_coverage(x, y, place, candidates)
        first_row = (image[layer] * height).index_select(0, piece)
        sample = (first_row + row) * width + column
        layer = layer.index_select(0, piece)
        order, pair, pairs = sort_fragments(sample, layer, len(image))
        coverage = coverage.index_select(0, order)
        best = coverage.new_full((pairs,), -1).scatter_reduce(0, pair, coverage, "amax")
        (ties,) = (coverage == best.index_select(0, pair)).nonzero(as_tuple=True)
        winner = order.new_full((pairs,), len(order))
        winner = winner.scatter_reduce(0, pair.index_select(0, ties), ties, "amin")
        chosen = order.index_select(0, winner)
        sample, layer = sample.index_select(0, chosen), layer.index_select(0, chosen)
        # Only samples at an edge have a gradient: fully covered ones do not change.
        (edge,) = (best < 1).nonzero(as_tuple=True)
        chosen = chosen.index_select(0, edge)
        x, y, place, piece = (v.index_select(0, chosen) for v in (x, y, place, piece))
    coverage = _stroke_coverage(x, y, place, columns_at(capsules, piece))
    return Fragments(sample, layer, best.index_copy(0, edge, coverage))


def _samples_near(
    capsules: Tensor, path: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """List the samples around each capsule, a piece with a radius, as (piece, column, row).

    A sample whose nearest point is inside a piece lies in a rectangle along the piece, which
    extends to the reach r + ramp on both sides. A sample whose nearest point is the joint of two
    pieces that turn by an angle a lies in the wedge between their rectangles, less than
    reach · sin(a / 2) beyond the nearer one. The free ends of a path need the whole reach. The
    rectangles are lengthened by that much. Every sample of a stroke is then listed about once,
    however short the pieces are.
    """
    ax, ay, bx, by, radius = capsules
    reach = radius + _RAMP
    length = torch.hypot(bx - ax, by - ay)
    # A piece without length has no direction; its joints get the whole reach.
    is_point = length == 0
    tx = ((bx - ax) / length).where(~is_point, 1)
    ty = ((by - ay) / length).where(~is_point, 0)
    cosine = (tx[1:] * tx[:-1] + ty[1:] * ty[:-1]).clamp(-1, 1)
    is_joined = (path[1:] == path[:-1]) & ~is_point[1:] & ~is_point[:-1]
    turn = ((1 - cosine) / 2).sqrt().where(is_joined, 1)
    one = turn.new_ones(1)
    before = -reach * torch.cat([one, turn])
    after = length + reach * torch.cat([turn, one])

    low = ay + torch.minimum(before * ty, after * ty) - reach * tx.abs()
    high = ay + torch.maximum(before * ty, after * ty) + reach * tx.abs()
    left = ax + torch.minimum(before * tx, after * tx) - reach * ty.abs()
    right = ax + torch.maximum(before * tx, after * tx) + reach * ty.abs()
    first, row_count = _centres(low, high, height)
    piece, step = expand(row_count * ((right > 0) & (left < width) & (radius >= 0)))

    # In the row at distance v below the piece's start, u = x − ax is bounded by both pairs of
    # sides: before ≤ u tx + v ty ≤ after and −reach ≤ v tx − u ty ≤ reach.
    row = first.index_select(0, piece) + step
    sides = torch.stack([ax, ay, tx, ty, reach, before, after]).index_select(1, piece)
    ax, ay, tx, ty, reach, before, after = sides
    v = row + 0.5 - ay
    low, high = _bounds(before - v * ty, after - v * ty, tx)
    left, right = _bounds(v * tx - reach, v * tx + reach, ty)
    first, column_count = _centres(
        ax + torch.maximum(low, left), ax + torch.minimum(high, right), width
    )
    span, step = expand(column_count)
    column = first.index_select(0, span) + step
    return piece.index_select(0, span), column, row.index_select(0, span)


def _bounds(low: Tensor, high: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest u with low ≤ u · factor ≤ high."""
    tiny = torch.finfo(factor.dtype).eps
    factor = factor.where(factor.abs() > tiny, tiny)
    one, other = low / factor, high / factor
    return torch.minimum(one, other), torch.maximum(one, other)


def _centres(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first sample with its centre in [low, high], and how many there are."""
    first = (low - 0.5).ceil().clamp(0, size).long()
    last = (high - 0.5).floor().clamp(-1, size - 1).long()
    return first, (last - first + 1).clamp_min(0)


def _nearest_place(x: Tensor, y: Tensor, capsules: Tensor) -> Tensor:
    """Return the place, from 0 to 1, of the point of each piece that is nearest to (x, y)."""
    ax, ay, bx, by, _ = capsules
    ux, uy = bx - ax, by - ay
    square = ux * ux + uy * uy
    place: Tensor = ((x - ax) * ux + (y - ay) * uy) / square.where(square > 0, 1)
    return place.clamp(0, 1)


def _stroke_coverage(x: Tensor, y: Tensor, place: Tensor, capsules: Tensor) -> Tensor:
    """Return how much of the samples at (x, y) strokes cover, given the nearest places."""
    ax, ay, bx, by, radius = capsules
    dx = x - ax - place * (bx - ax)
    dy = y - ay - place * (by - ay)
    # The square root has no gradient at 0, where the coverage does not change.
    distance = (dx * dx + dy * dy).clamp_min(1e-12).sqrt()
    return _edge(radius - distance) + _edge(radius + distance) - 1


def _edge(depth: Tensor) -> Tensor:
    """Return the share of a sample that lies behind an edge, by the depth of its centre.

    It is the integral of the parabola 3/4 (1 − x²), which is smooth and the same in all directions.
    """
    x = (depth / _RAMP).clamp(-1, 1)
    return 0.5 + x * (3 - x * x) / 4


# --------------------------------------------------------------------------------------- fills


class _Boxes(NamedTuple):
    """The bounding box of each of L layers within the canvas, all in whole samples.

    The winding numbers of all boxes are one flat list of cells, box after box and row after row.

    Attributes:
        left, top, right: (L,).
        stride: cells of a row, (L,): one more than its samples. The last cell takes what lies to
            the right of the canvas, so that every row sums to zero.
        cells: number of cells, (L,).
        origin: number of the first cell, (L,).
    """

    left: Tensor
    top: Tensor
    right: Tensor
    stride: Tensor
    cells: Tensor
    origin: Tensor


def _boxes(
    start: Tensor, end: Tensor, layer: Tensor, layers: int, height: int, width: int
) -> _Boxes:
    """Return the boxes of layers whose pieces (2, K) belong to `layer` (K,)."""
    index = layer.expand(2, -1)
    infinity = start.new_full((2, layers), math.inf)
    low = infinity.scatter_reduce(1, index, torch.minimum(start, end), "amin").floor()
    high = (-infinity).scatter_reduce(1, index, torch.maximum(start, end), "amax").ceil()
    corner = start.new_tensor([[width], [height]])
    low, high = (values.clamp_min(0).minimum(corner).long() for values in (low, high))
    columns, rows = (high - low).clamp_min(0)
    stride = columns + 1
    cells = stride * rows * (columns > 0)
    return _Boxes(low[0], low[1], high[0], stride, cells, torch.cumsum(cells, 0) - cells)


def cover_fills(
    curves: Curves, image: Tensor, even_odd: Tensor, height: int, width: int
) -> Fragments:
    """Return what fills cover, from the winding number averaged over each sample.

    The share of a sample to the right of a piece is exact. Each piece adds differences along the
    rows of its layer's box, and these are summed from left to right. Numbers are in double
    precision, since the sum runs through all boxes.

    Args:
        curves: the outlines.
        image: the picture of each layer, (L,).
        even_odd: whether each layer is filled by the even-odd rule, (L,), bool.
        height, width: of a picture, in samples.
    """
    start, end, layer = _closed_outlines(curves, height, width)
    with torch.no_grad():
        boxes = _boxes(start, end, layer, len(image), height, width)
    winding = _winding(start, end, layer, boxes, height, width)
    with torch.no_grad():
        (cell,) = (winding.abs() > 1e-6).nonzero(as_tuple=True)
        layer = torch.searchsorted(boxes.origin + boxes.cells, cell, right=True)
        place = cell - boxes.origin[layer]
        row = place // boxes.stride[layer] + boxes.top[layer]
        column = place % boxes.stride[layer] + boxes.left[layer]
        sample = (image[layer] * height + row) * width + column
    turns = winding.index_select(0, cell).abs()
    by_even_odd = 1 - (turns % 2 - 1).abs()
    coverage = by_even_odd.where(even_odd[layer], turns.clamp_max(1))
    return Fragments(sample, layer, coverage.to(curves.control.dtype))


def _closed_outlines(curves: Curves, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pieces of outlines: start (2, K), end (2, K) and layer (K,).

    A line from its end to its start closes every path; in a path that is closed already this line
    has no length.
    """
    pieces = _cut(curves, _FILL_TOLERANCE, height, width)
    _, length = curves.path.unique_consecutive(return_counts=True)
    last = torch.cumsum(length, 0) - 1
    first = last - length + 1
    start = torch.cat([pieces.start, curves.control[last, 3].mT], 1).double() + _FILL_SHIFT
    end = torch.cat([pieces.end, curves.control[first, 0].mT], 1).double() + _FILL_SHIFT
    return start, end, curves.layer[torch.cat([pieces.curve, first])]


def _winding(
    start: Tensor, end: Tensor, layer: Tensor, boxes: _Boxes, height: int, width: int
) -> Tensor:
    """Return the mean winding number of every cell of the boxes."""
    with torch.no_grad():
        top = torch.minimum(start[1], end[1]).floor().clamp(0, height).long()
        bottom = torch.maximum(start[1], end[1]).ceil().clamp(0, height).long()
        crosses_rows = (start[1] != end[1]) & (boxes.cells[layer] > 0)
        piece, step = expand((bottom - top).clamp_min(0) * crosses_rows)
        row, layer = top[piece] + step, layer[piece]

    # The part of each piece within a row, from (x0, y0) to (x1, y1).
    (ax, ay), (bx, by) = columns_at(start, piece), columns_at(end, piece)
    y0, y1 = ay.clamp(row, row + 1), by.clamp(row, row + 1)
    slope = (bx - ax) / (by - ay)
    x0, x1 = ax + (y0 - ay) * slope, ax + (y1 - ay) * slope
    with torch.no_grad():
        left, right = boxes.left[layer], boxes.right[layer]
        first = torch.minimum(x0, x1).floor().clamp(0, width).long()
        last = (torch.maximum(x0, x1).floor() + 1).clamp(0, width).long()
        first, last = first.minimum(right), last.minimum(right)
        part, step = expand(last - first + 1)
        column = first[part] + step
        line = boxes.origin[layer] + (row - boxes.top[layer]) * boxes.stride[layer] - left
        cell = line[part] + column
    x0, x1, rise = columns_at(torch.stack([x0, x1, y1 - y0]), part)
    share = _share_right(column + 1, x0, x1).where(column < right[part], 1)
    share_before = _share_right(column, x0, x1).where(step > 0, 0)
    change = rise * (share - share_before)
    zeros = change.new_zeros(int(boxes.cells.sum()))
    winding: Tensor = zeros.index_add(0, cell, change).cumsum(0)
    return winding


def _share_right(edge: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """Return the mean, for x from x0 to x1, of the share of [edge − 1, edge] to the right of x."""
    is_vertical = (x1 - x0).abs() < 1e-6
    slanted = (_ramp(edge - x0) - _ramp(edge - x1)) / (x1 - x0).where(~is_vertical, 1)
    return slanted.where(~is_vertical, (edge - (x0 + x1) / 2).clamp(0, 1))


def _ramp(z: Tensor) -> Tensor:
    """Return the integral of clamp(z, 0, 1)."""
    within = z.clamp(0, 1)
    return within * (z - within / 2)
