"""A differentiable renderer of paths, in torch alone.

Three steps, each in tensors that list only what is there, so that the cost follows the pixels
that are covered and not the number of strokes times the number of pixels:

1. **Coverage of strokes.** Curves are cut into straight pieces. Around each piece lies a
   rectangle that holds every pixel whose nearest point of the stroke may be on it; its pixels are
   listed row by row. A pixel's coverage depends on its distance d to the nearest piece alone:
   with r half the width, F(r − d) + F(r + d) − 1, where F is the share of a pixel that lies
   behind a straight edge. Ends and corners are therefore round, and a width below 0 is nothing.
2. **Coverage of fills.** The winding number, averaged over each pixel, is summed exactly from the
   areas that each piece of the outline leaves to its right (the accumulation buffer of font
   rasterisers). The fill rule is applied to that average.
3. **Compositing.** The fragments (pixel, layer, coverage) are sorted and painted "over" each
   other, every pixel's lowest fragment at once, then every pixel's second, and so on.

Gradients are those of this very computation. Which piece is nearest and where on it are found
without autograd and then held: at the nearest point, moving along the piece does not change the
distance (the envelope theorem), so the distance to that fixed point of the piece has the right
gradient. Everything is smooth in the parameters except where a pixel's nearest point jumps from
one part of a stroke to another; there the distance still is continuous.

Pictures are rendered at `samples` times the size and averaged, so above, a pixel is a sample. That
makes round ends truer, and pixels in which several edges of one shape meet: there the rule of the
averaged winding and the larger of two coverages are approximations. Device and dtype follow the
inputs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import avg_pool2d

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.vector.paths import Curves, Group, Paint, to_curves

# Curves are cut so that no piece is farther from its curve than this, in samples. Both sides of a
# stroke move together, but a filled curve loses what its chords cut off.
_STROKE_TOLERANCE = 0.05
_FILL_TOLERANCE = 0.01
_MOST_PIECES = 1024
# Squares of larger coordinates would overflow single precision.
_FAR = 1e15
# Half the width of an edge's ramp, in samples: it gives the ramp the variance of a pixel's box,
# which is 1/12 in every direction.
_RAMP = math.sqrt(5 / 12)
# Fills are moved by this, in samples: coverage has a kink where an edge runs exactly between two
# rows, as edges at whole pixels do, and no gradient would bring such an edge to move.
_ASIDE = 2**-14


class _Drawing(NamedTuple):
    """What is to be painted: curves, and tables over the L layers, in paint order."""

    fills: Curves | None
    strokes: Curves | None
    image: Tensor  # (L,), which picture of the batch
    colour: Tensor  # (L, 4)
    even_odd: Tensor  # (L,), bool
    functions: dict[int, Callable[[Tensor], Tensor]]  # paints that are not one colour


class _Fragments(NamedTuple):
    """Where layers cover samples, all (N,): `sample` counts along all rows of all pictures."""

    sample: Tensor
    layer: Tensor
    coverage: Tensor


def render(scenes: Sequence[Sequence[Group]], size: tuple[int, int], samples: int = 2) -> Tensor:
    """Render drawings.

    Args:
        scenes: B drawings; the groups of each are painted in order.
        size: height and width of the canvas in pixels.
        samples: coverage is computed on this many samples per pixel and axis.

    Returns:
        (B, 4, H, W), RGBA with premultiplied alpha; see `over` and `straight`.

    Raises:
        ClipagError: nothing to render, a parameter that is not finite, or points that do not fit
            their segments.
    """
    groups = [group for scene in scenes for group in scene if group.paths]
    if not groups:
        raise ClipagError("There is nothing to render: give at least one group with a path.")
    none = groups[0].paths[0].points.new_zeros(4)
    # Every group makes two layers, its fill and then its stroke.
    paints = [paint for group in groups for paint in (group.fill, group.stroke)]
    image = [i for i, scene in enumerate(scenes) for g in scene if g.paths for _ in range(2)]
    even_odd = [group.use_even_odd_rule for group in groups for _ in range(2)]
    drawing = _Drawing(
        fills=_curves_of(groups, paints, 0),
        strokes=_curves_of(groups, paints, 1),
        image=torch.tensor(image, device=none.device),
        colour=torch.stack([p.to(none) if isinstance(p, Tensor) else none for p in paints]),
        even_odd=torch.tensor(even_odd, device=none.device),
        functions={i: p for i, p in enumerate(paints) if callable(p)},
    )
    return _render(drawing, len(scenes), size, samples)


def _curves_of(groups: Sequence[Group], paints: Sequence[Paint | None], side: int) -> Curves | None:
    """Return the curves of all fills (side 0) or strokes (side 1) that have a paint."""
    layers = [layer for layer in range(side, len(paints), 2) if paints[layer] is not None]
    if not layers:
        return None
    curves = to_curves([groups[layer // 2] for layer in layers])
    return curves._replace(layer=torch.tensor(layers, device=curves.layer.device)[curves.layer])


def render_paths(
    points: Tensor,
    size: tuple[int, int],
    *,
    strokes: Tensor | None = None,
    widths: Tensor | None = None,
    fills: Tensor | None = None,
    segments: Tensor | None = None,
    is_closed: bool = False,
    samples: int = 2,
) -> Tensor:
    """Render drawings of equally many cubic paths each, painted in order.

    Args:
        points: (B, P, 3S + 1, 2), or (B, P, 3S, 2) if closed: ends and control points in pixels.
        size: height and width of the canvas in pixels.
        strokes: (B, P, 4), colours of the strokes, RGBA with straight alpha, in [0, 1].
        widths: (B, P), full widths of the strokes in pixels; 1 by default.
        fills: (B, P, 4), colours of the insides by the non-zero rule. An open path is filled as
            if a line closed it.
        segments: (B, P), of open paths: how many of the S segments are there; all by default.
        is_closed: whether the last segment of each path ends at its first point.
        samples: coverage is computed on this many samples per pixel and axis.

    Returns:
        (B, 4, H, W), RGBA with premultiplied alpha; see `over` and `straight`.

    Raises:
        ClipagError: a parameter is not finite, points do not make whole segments, or `segments`
            are given for closed paths.
    """
    if is_closed and segments is not None:
        raise ClipagError("Closed paths have all their segments: leave segments out, or open them.")
    batch, paths, count, _ = points.shape
    most, rest = divmod(count - (not is_closed), 3)
    if rest or most < 1:
        raise ClipagError(
            f"{count} points a path do not make whole cubic segments: give "
            f"{'closed paths 3S' if is_closed else 'open paths 3S + 1'} points."
        )
    device = points.device
    corner = 3 * torch.arange(most, device=device)[:, None] + torch.arange(4, device=device)
    control = points[:, :, corner % count].flatten(0, 1)
    here = torch.ones(batch * paths, most, dtype=torch.bool, device=device)
    if segments is not None:
        here = torch.arange(most, device=device) < segments.reshape(-1, 1)
    path = torch.arange(batch * paths, device=device).repeat_interleave(here.sum(1))
    width = points.new_ones(batch * paths) if widths is None else widths.reshape(-1)
    curves = Curves(control[here], width[path] / 2, path, 2 * path)
    none = points.new_zeros(batch, paths, 4)
    colour = torch.stack([none if c is None else c for c in (fills, strokes)], dim=2)
    drawing = _Drawing(
        fills=None if fills is None else curves,
        strokes=None if strokes is None else curves._replace(layer=2 * path + 1),
        image=torch.arange(batch, device=device).repeat_interleave(2 * paths),
        colour=colour.flatten(0, 2),
        even_odd=torch.zeros(2 * batch * paths, dtype=torch.bool, device=device),
        functions={},
    )
    return _render(drawing, batch, size, samples)


def over(image: Tensor, background: Tensor) -> Tensor:
    """Return premultiplied RGBA (B, 4, H, W) on an opaque colour (3,) as RGB (B, 3, H, W)."""
    return image[:, :3] + (1 - image[:, 3:]) * background.view(3, 1, 1)


def straight(image: Tensor) -> Tensor:
    """Return premultiplied RGBA (B, 4, H, W) with straight alpha; black where nothing is."""
    alpha = image[:, 3:]
    return torch.cat([image[:, :3] / alpha.where(alpha > 0, 1), alpha], dim=1)


def _render(drawing: _Drawing, batch: int, size: tuple[int, int], samples: int) -> Tensor:
    height, width = size[0] * samples, size[1] * samples
    nowhere = drawing.image[:0]
    found = [_Fragments(nowhere, nowhere, drawing.colour[:0, 0])]
    for curves, cover in ((drawing.fills, _cover_fills), (drawing.strokes, _cover_strokes)):
        if curves is None or not len(curves.path):
            continue
        for name, values in (("points", curves.control), ("stroke widths", curves.radius)):
            _check(name, values)
        curves = curves._replace(control=curves.control * samples, radius=curves.radius * samples)
        found.append(cover(curves, drawing, height, width))
    _check("colours", drawing.colour)
    sample, layer, coverage = (torch.cat(parts) for parts in zip(*found, strict=True))
    if drawing.fills is not None:  # strokes alone are sorted
        order, _, _ = _runs(sample, layer, len(drawing.image))
        sample, layer = sample[order], layer[order]
        coverage = coverage.gather(0, order)
    colour = _at(drawing.colour.mT, layer)
    for number, function in drawing.functions.items():
        (where,) = (layer == number).nonzero(as_tuple=True)
        place = sample[where] % (height * width)
        centre = torch.stack([place % width, place // width], dim=1) + 0.5
        painted = function(centre.to(colour) / samples).to(colour)
        colour = colour.index_copy(1, where, painted.mT)
    alpha = coverage * colour[3:]
    source = torch.cat([alpha * colour[:3], alpha])
    picture = _composite(sample, source, batch * height * width)
    return avg_pool2d(picture.view(4, batch, height, width), samples).transpose(0, 1)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Return values (C, K) at index (N,) as (C, N), by the operation whose gradient is fast."""
    return values.gather(1, index.expand(len(values), -1))


def _check(name: str, values: Tensor) -> None:
    if not (values.abs() <= _FAR).all():
        raise ClipagError(
            f"The {name} of the drawing hold NaN or numbers beyond {_FAR:g}: mend the input, or "
            "lower the learning rate that led there."
        )


# ---------------------------------------------------------------------------- curves to pieces


class _Pieces(NamedTuple):
    """Straight pieces of curves: ends (2, K) in samples, and which curve each is of (K,)."""

    start: Tensor
    end: Tensor
    curve: Tensor


def _cut(curves: Curves, tolerance: float, height: int, width: int) -> _Pieces:
    """Cut curves into straight pieces, as few as the tolerance allows.

    A cubic whose control points have second differences of at most b leaves n chords by at most
    (3/4) b / n² (Wang's formula).
    """
    with torch.no_grad():
        control = curves.control
        bend = (control[:, 2:] - 2 * control[:, 1:-1] + control[:, :-2]).norm(dim=2).amax(1)
        count = (0.75 * bend / tolerance).sqrt().ceil().clamp(1, _MOST_PIECES)
        # What lies beside the canvas as a whole stays there when it is made straight.
        reach = curves.radius[:, None] + _RAMP
        low, high = control.amin(1) - reach, control.amax(1) + reach
        beside = (high < 0).any(1) | (low > low.new_tensor([width, height])).any(1)
        count = count.where(~beside, 1).long()
    # A curve of n pieces has n + 1 nodes; Bernstein polynomials place them.
    owner, step = _expand(count + 1)
    t = step / count[owner].to(control.dtype)
    s = 1 - t
    bernstein = torch.stack([s**3, 3 * s**2 * t, 3 * s * t**2, t**3])
    control = _at(curves.control.permute(2, 1, 0).flatten(0, 1), owner).view(2, 4, -1)
    nodes = (bernstein * control).sum(1)
    curve, step = _expand(count)
    first = step + (torch.cumsum(count + 1, 0) - count - 1)[curve]
    return _Pieces(_at(nodes, first), _at(nodes, first + 1), curve)


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return for counts (n,) of things that each owner has: owner and number within, both (Σ,)."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = torch.cumsum(counts, 0) - counts
    number = torch.arange(len(owner), device=counts.device)
    return owner, number - first.index_select(0, owner)


# ------------------------------------------------------------------------------------- strokes


def _cover_strokes(curves: Curves, drawing: _Drawing, height: int, width: int) -> _Fragments:
    """Return what strokes cover: per layer and sample, the piece that covers it most."""
    pieces = _cut(curves, _STROKE_TOLERANCE, height, width)
    capsules = torch.cat([pieces.start, pieces.end, _at(curves.radius[None], pieces.curve)])
    with torch.no_grad():
        layer = curves.layer[pieces.curve]
        piece, column, row = _near(capsules, curves.path[pieces.curve], height, width)
        x, y = column + 0.5, row + 0.5
        near = capsules.index_select(1, piece)
        place = _project(x, y, near)
        coverage = _coverage(x, y, place, near)
        first = (drawing.image[layer] * height).index_select(0, piece)
        sample = (first + row) * width + column
        layer = layer.index_select(0, piece)
        order, group, groups = _runs(sample, layer, len(drawing.image))
        coverage = coverage.index_select(0, order)
        best = coverage.new_full((groups,), -1).scatter_reduce(0, group, coverage, "amax")
        (ties,) = (coverage == best.index_select(0, group)).nonzero(as_tuple=True)
        winner = order.new_full((groups,), len(order))
        winner = winner.scatter_reduce(0, group.index_select(0, ties), ties, "amin")
        kept = order.index_select(0, winner)
        sample, layer = sample.index_select(0, kept), layer.index_select(0, kept)
        # Well inside a stroke nothing depends on where it runs.
        (edge,) = (best < 1).nonzero(as_tuple=True)
        kept = kept.index_select(0, edge)
        x, y, place, piece = (v.index_select(0, kept) for v in (x, y, place, piece))
    coverage = _coverage(x, y, place, _at(capsules, piece))
    return _Fragments(sample, layer, best.index_copy(0, edge, coverage))


def _near(capsules: Tensor, path: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """List the samples around each capsule, a piece with a radius, as (piece, column, row).

    A sample whose nearest point is inside a piece lies in the rectangle along the piece, to the
    reach r + ramp on both sides. One whose nearest point is the joint of two pieces that turn by
    an angle a lies in the wedge between their rectangles, less than reach · sin(a / 2) beyond the
    nearer one; the free ends of a path need the whole reach. The rectangles are lengthened by
    that, and every sample of a stroke is listed about once however short the pieces are.
    """
    ax, ay, bx, by, radius = capsules
    reach = radius + _RAMP
    length = torch.hypot(bx - ax, by - ay)
    # A piece without a length may point anywhere; its joints get the whole reach.
    flat = length == 0
    tx = ((bx - ax) / length).where(~flat, 1)
    ty = ((by - ay) / length).where(~flat, 0)
    cosine = (tx[1:] * tx[:-1] + ty[1:] * ty[:-1]).clamp(-1, 1)
    joined = (path[1:] == path[:-1]) & ~flat[1:] & ~flat[:-1]
    turn = ((1 - cosine) / 2).sqrt().where(joined, 1)
    one = turn.new_ones(1)
    before = -reach * torch.cat([one, turn])
    after = length + reach * torch.cat([turn, one])

    low = ay + torch.minimum(before * ty, after * ty) - reach * tx.abs()
    high = ay + torch.maximum(before * ty, after * ty) + reach * tx.abs()
    left = ax + torch.minimum(before * tx, after * tx) - reach * ty.abs()
    right = ax + torch.maximum(before * tx, after * tx) + reach * ty.abs()
    first, rows = _centres(low, high, height)
    piece, step = _expand(rows * ((right > 0) & (left < width) & (radius >= 0)))

    # In the row at distance v below the piece's start, u = x − ax is bounded by both pairs of
    # sides: before ≤ u tx + v ty ≤ after and −reach ≤ v tx − u ty ≤ reach.
    row = first.index_select(0, piece) + step
    sides = torch.stack([ax, ay, tx, ty, reach, before, after]).index_select(1, piece)
    ax, ay, tx, ty, reach, before, after = sides
    v = row + 0.5 - ay
    low, high = _between(before - v * ty, after - v * ty, tx)
    left, right = _between(v * tx - reach, v * tx + reach, ty)
    first, columns = _centres(ax + torch.maximum(low, left), ax + torch.minimum(high, right), width)
    span, step = _expand(columns)
    column = first.index_select(0, span) + step
    return piece.index_select(0, span), column, row.index_select(0, span)


def _between(low: Tensor, high: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds of u where low ≤ u · factor ≤ high."""
    tiny = torch.finfo(factor.dtype).eps
    factor = factor.where(factor.abs() > tiny, tiny)
    one, other = low / factor, high / factor
    return torch.minimum(one, other), torch.maximum(one, other)


def _centres(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first sample with its centre in [low, high], and how many there are."""
    first = (low - 0.5).ceil().clamp(0, size).long()
    last = (high - 0.5).floor().clamp(-1, size - 1).long()
    return first, (last - first + 1).clamp_min(0)


def _project(x: Tensor, y: Tensor, capsules: Tensor) -> Tensor:
    """Return where on each piece, from 0 to 1, its point nearest to (x, y) lies."""
    ax, ay, bx, by, _ = capsules
    ux, uy = bx - ax, by - ay
    square = ux * ux + uy * uy
    place: Tensor = ((x - ax) * ux + (y - ay) * uy) / square.where(square > 0, 1)
    return place.clamp(0, 1)


def _coverage(x: Tensor, y: Tensor, place: Tensor, capsules: Tensor) -> Tensor:
    """Return how much of the samples at (x, y) strokes cover whose nearest points are known."""
    ax, ay, bx, by, radius = capsules
    dx = x - ax - place * (bx - ax)
    dy = y - ay - place * (by - ay)
    # At distance 0 the square root has no gradient, and the coverage does not change.
    distance = (dx * dx + dy * dy).clamp_min(1e-12).sqrt()
    return _edge(radius - distance) + _edge(radius + distance) - 1


def _edge(depth: Tensor) -> Tensor:
    """Return the share of a sample behind an edge, its centre being that deep inside.

    The integral of the parabola 3/4 (1 − x²), which is smooth and the same in all directions.
    """
    x = (depth / _RAMP).clamp(-1, 1)
    return 0.5 + x * (3 - x * x) / 4


# --------------------------------------------------------------------------------------- fills


def _cover_fills(curves: Curves, drawing: _Drawing, height: int, width: int) -> _Fragments:
    """Return what fills cover, from the winding number averaged over each sample.

    The share of a sample to the right of a piece is exact. What every piece adds is written as
    differences along the rows of its layer's bounding box, and summed from left to right. In
    double precision, for the sum runs over all boxes.
    """
    pieces = _cut(curves, _FILL_TOLERANCE, height, width)
    # A line from its end to its start closes every path; in a closed one that has no length.
    _, length = curves.path.unique_consecutive(return_counts=True)
    last = torch.cumsum(length, 0) - 1
    first = last - length + 1
    start = torch.cat([pieces.start, curves.control[last, 3].mT], 1).double() + _ASIDE
    end = torch.cat([pieces.end, curves.control[first, 0].mT], 1).double() + _ASIDE
    layer = curves.layer[torch.cat([pieces.curve, first])]

    with torch.no_grad():
        # The box (2, L) of each layer within the canvas, in samples: x, y.
        index = layer.expand(2, -1)
        far = start.new_full((2, len(drawing.image)), math.inf)
        low = far.scatter_reduce(1, index, torch.minimum(start, end), "amin").floor()
        high = (-far).scatter_reduce(1, index, torch.maximum(start, end), "amax").ceil()
        corner = start.new_tensor([[width], [height]])
        low, high = (values.clamp_min(0).minimum(corner).long() for values in (low, high))
        wide, tall = (high - low).clamp_min(0)
        # One more column takes what lies right of the canvas, so that every row sums to zero.
        stride = wide + 1
        cells = stride * tall * (wide > 0)
        origin = torch.cumsum(cells, 0) - cells

        top = torch.minimum(start[1], end[1]).floor().clamp(0, height).long()
        bottom = torch.maximum(start[1], end[1]).ceil().clamp(0, height).long()
        slanted = (start[1] != end[1]) & (cells[layer] > 0)
        piece, step = _expand((bottom - top).clamp_min(0) * slanted)
        row, layer = top[piece] + step, layer[piece]

    # The part of each piece within a row, from (x0, y0) to (x1, y1).
    (ax, ay), (bx, by) = _at(start, piece), _at(end, piece)
    y0, y1 = ay.clamp(row, row + 1), by.clamp(row, row + 1)
    slope = (bx - ax) / (by - ay)
    x0, x1 = ax + (y0 - ay) * slope, ax + (y1 - ay) * slope
    with torch.no_grad():
        left, right = low[0, layer], high[0, layer]
        first = torch.minimum(x0, x1).floor().clamp(0, width).long()
        last = (torch.maximum(x0, x1).floor() + 1).clamp(0, width).long()
        first, last = first.minimum(right), last.minimum(right)
        part, step = _expand(last - first + 1)
        column = first[part] + step
        line = origin[layer] + (row - low[1, layer]) * stride[layer] - left
        cell = line[part] + column
    x0, x1, rise = _at(torch.stack([x0, x1, y1 - y0]), part)
    share = _share_right(column + 1, x0, x1).where(column < right[part], 1)
    before = _share_right(column, x0, x1).where(step > 0, 0)
    change = rise * (share - before)
    winding = change.new_zeros(int(cells.sum())).index_add(0, cell, change).cumsum(0)

    with torch.no_grad():
        (cell,) = (winding.abs() > 1e-6).nonzero(as_tuple=True)
        layer = torch.searchsorted(origin + cells, cell, right=True)
        place = cell - origin[layer]
        row = place // stride[layer] + low[1, layer]
        column = place % stride[layer] + low[0, layer]
        sample = (drawing.image[layer] * height + row) * width + column
    inside = winding.index_select(0, cell).abs()
    odd = 1 - (inside % 2 - 1).abs()
    coverage = odd.where(drawing.even_odd[layer], inside.clamp_max(1))
    return _Fragments(sample, layer, coverage.to(curves.control.dtype))


def _share_right(edge: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """Return the mean, over x from x0 to x1, of the share of [edge − 1, edge] right of x."""
    flat = (x1 - x0).abs() < 1e-6
    slanted = (_ramp(edge - x0) - _ramp(edge - x1)) / (x1 - x0).where(~flat, 1)
    return slanted.where(~flat, (edge - (x0 + x1) / 2).clamp(0, 1))


def _ramp(z: Tensor) -> Tensor:
    """Return the integral of clamp(z, 0, 1)."""
    within = z.clamp(0, 1)
    return within * (z - within / 2)


# --------------------------------------------------------------------------------- compositing


def _runs(sample: Tensor, layer: Tensor, layers: int) -> tuple[Tensor, Tensor, int]:
    """Sort by sample, then layer. Return the order, and each sorted one's run of equals."""
    key = sample * layers + layer
    if len(key) and int(key.max()) < 2**31:
        key = key.int()  # which sorts twice as fast
    key, order = key.sort(stable=True)
    new = torch.ones_like(key, dtype=torch.bool)
    new[1:] = key[1:] != key[:-1]
    group = torch.cumsum(new, 0) - 1
    return order, group, int(group[-1]) + 1 if len(group) else 0


def _composite(sample: Tensor, source: Tensor, total: int) -> Tensor:
    """Paint fragments (4, N), premultiplied RGBA, over each other; return samples (4, total).

    They come sorted by sample, and for each sample in paint order.
    """
    with torch.no_grad():
        place, depth = sample.unique_consecutive(return_counts=True)
        first = torch.cumsum(depth, 0) - depth
        # Deepest samples first: those with more than k fragments are then a prefix, for every k.
        depth, deepest = depth.sort(descending=True, stable=True)
        place, first = place[deepest], first[deepest]
        sizes = len(depth) - torch.cumsum(depth.bincount(), 0)[:-1]
        level, slot = _expand(sizes)
        order = first.index_select(0, slot) + level
    painted = _Over.apply(_at(source, order), sizes.tolist())
    return source.new_zeros(4, total).scatter(1, place.expand(4, -1), painted)


class _Over(torch.autograd.Function):
    """The "over" operator of Porter and Duff (1984), from the lowest level to the highest.

    `source` (4, N) is premultiplied RGBA, level after level. Each level lies on the first
    samples of the level below: `sizes` says how many.
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, sizes: list[int]) -> Tensor:
        behind = torch.empty_like(source)
        result = source.new_zeros(4, max(sizes, default=0))
        through = 1 - source[3]
        last = 0
        for size in sizes:
            first, last = last, last + size
            behind[:, first:last] = result[:, :size]
            result[:, :size] *= through[first:last]
            result[:, :size] += source[:, first:last]
        ctx.save_for_backward(through, behind)
        ctx.sizes = sizes
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        through, behind = ctx.saved_tensors
        gradient = gradient.clone()
        result = torch.empty_like(behind)
        first = behind.shape[1]
        for size in reversed(ctx.sizes):
            first, last = first - size, first
            result[:, first:last] = gradient[:, :size]
            gradient[:, :size] *= through[first:last]
        result[3] -= (result * behind).sum(0)
        return result, None
