"""A differentiable renderer of paths, in torch alone.

Three steps, each in tensors that list only what is there, so that the cost follows the pixels
that are covered and not the number of strokes times the number of pixels:

1. **Coverage of strokes.** Curves are cut into straight pieces. Around each piece lies a
   rectangle that holds every pixel whose nearest point of the stroke may be on it; its pixels are
   listed row by row. A pixel's coverage depends on its distance d to the nearest piece alone:
   with r half the width, F(r − d) + F(r + d) − 1, where F is the share of a pixel that lies
   behind a straight edge. Ends and corners are therefore round.
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

Pictures are rendered at `samples` times the size and averaged, which makes round ends and crossing
edges truer. Device and dtype follow the inputs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import avg_pool2d

from ..errors import ClipagError
from .paths import Curves, Group, Paint, to_curves

# Curves are cut so that no piece is farther from its curve than this, in samples.
_TOLERANCE = 0.1
_MOST_PIECES = 1024
# Half the width of an edge's ramp, in samples: it gives the ramp the variance of a pixel's box,
# which is 1/12 in every direction.
_RAMP = math.sqrt(5 / 12)


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
        ClipagError: a parameter is not finite, or points do not make whole segments.
    """
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
        for name, values in (("points", curves.control), ("stroke width", curves.radius)):
            _check_finite(name, values)
        curves = curves._replace(control=curves.control * samples, radius=curves.radius * samples)
        found.append(cover(curves, drawing, height, width))
    _check_finite("colours", drawing.colour)
    sample, layer, coverage = (torch.cat(parts) for parts in zip(*found, strict=True))
    colour = drawing.colour.index_select(0, layer)
    for number, function in drawing.functions.items():
        (where,) = (layer == number).nonzero(as_tuple=True)
        place = sample[where] % (height * width)
        centre = torch.stack([place % width, place // width], dim=1) + 0.5
        colour = colour.index_copy(0, where, function(centre.to(colour) / samples).to(colour))
    alpha = coverage * colour[:, 3]
    source = torch.cat([colour[:, :3] * alpha[:, None], alpha[:, None]], dim=1)
    picture = _composite(sample, layer, source, batch * height * width, len(drawing.image))
    picture = picture.view(batch, height, width, 4).movedim(3, 1)
    return avg_pool2d(picture, samples)


def _check_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise ClipagError(
            f"The {name} hold NaN or infinity: check the last step that changed them, "
            "a learning rate that is too large for one."
        )


# ---------------------------------------------------------------------------- curves to pieces


class _Pieces(NamedTuple):
    """Straight pieces of curves: ends (K, 2) in samples, and which curve each is of (K,)."""

    start: Tensor
    end: Tensor
    curve: Tensor


def _cut(curves: Curves, height: int, width: int) -> _Pieces:
    """Cut curves into straight pieces, as few as the tolerance allows.

    A cubic whose control points have second differences of at most b leaves n chords by at most
    (3/4) b / n² (Wang's formula).
    """
    with torch.no_grad():
        control = curves.control
        bend = (control[:, 2:] - 2 * control[:, 1:-1] + control[:, :-2]).norm(dim=2).amax(1)
        count = (0.75 * bend / _TOLERANCE).sqrt().ceil().clamp(1, _MOST_PIECES)
        # What lies beside the canvas as a whole stays there when it is made straight.
        low = control.amin(1) - curves.radius[:, None]
        high = control.amax(1) + curves.radius[:, None]
        beside = (high < 0).any(1) | (low > low.new_tensor([width, height])).any(1)
        count = count.where(~beside, 1).long()
    # A curve of n pieces has n + 1 nodes; Bernstein polynomials place them.
    owner, step = _expand(count + 1)
    t = (step / count[owner]).to(control)[:, None]
    s = 1 - t
    weights = torch.cat([s**3, 3 * s**2 * t, 3 * s * t**2, t**3], dim=1)
    nodes = (weights[:, :, None] * curves.control.index_select(0, owner)).sum(1)
    curve, step = _expand(count)
    first = step + (torch.cumsum(count + 1, 0) - count - 1)[curve]
    return _Pieces(nodes.index_select(0, first), nodes.index_select(0, first + 1), curve)


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return for counts (n,) of things that each owner has: owner and number within, both (Σ,)."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    first = torch.cumsum(counts, 0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - first[owner]


# ------------------------------------------------------------------------------------- strokes


def _cover_strokes(curves: Curves, drawing: _Drawing, height: int, width: int) -> _Fragments:
    """Return what strokes cover: per layer and sample, the piece that covers it most."""
    pieces = _cut(curves, height, width)
    layer = curves.layer[pieces.curve]
    with torch.no_grad():
        piece, column, row = _near(pieces, curves, height, width)
        x, y = column + 0.5, row + 0.5
        start, end = pieces.start[piece], pieces.end[piece]
        radius = curves.radius[pieces.curve[piece]]
        place = _project(x, y, start, end)
        coverage, distance = _coverage(x, y, start, end, place, radius)
        (touched,) = (distance < radius + _RAMP).nonzero(as_tuple=True)
        piece, column, row = piece[touched], column[touched], row[touched]
        sample = (drawing.image[layer[piece]] * height + row) * width + column
        order, group, groups = _runs(sample, layer[piece], len(drawing.image))
        winner = touched.new_empty(groups)
        best = coverage.new_full((groups,), -1)
        coverage = coverage[touched][order]
        best.scatter_reduce_(0, group, coverage, "amax")
        (ties,) = (coverage == best[group]).nonzero(as_tuple=True)
        winner.fill_(len(order)).scatter_reduce_(0, group[ties], ties, "amin")
        chosen = order[winner]
        kept = touched[chosen]
        piece, sample = piece[chosen], sample[chosen]
    coverage, _ = _coverage(
        x[kept],
        y[kept],
        pieces.start.index_select(0, piece),
        pieces.end.index_select(0, piece),
        place[kept],
        curves.radius.index_select(0, pieces.curve[piece]),
    )
    return _Fragments(sample, layer[piece], coverage)


def _near(
    pieces: _Pieces, curves: Curves, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """List the samples around each piece, as (piece, column, row).

    A sample whose nearest point is inside a piece lies in the rectangle along the piece, to the
    reach r + ramp on both sides. One whose nearest point is the joint of two pieces that turn by
    an angle a lies in the wedge between their rectangles, less than reach · sin(a / 2) beyond the
    nearer one; the free ends of a path need the whole reach. The rectangles are lengthened by
    that, and every sample of a stroke is listed about once however short the pieces are.
    """
    start, curve = pieces.start, pieces.curve
    reach = curves.radius[curve] + _RAMP
    along = pieces.end - start
    length = along.norm(dim=1)
    # A piece without a length may point anywhere; its joints get the whole reach.
    flat = length == 0
    direction = along / length.where(~flat, 1)[:, None]
    direction[flat] = direction.new_tensor([1, 0])
    cosine = (direction[1:] * direction[:-1]).sum(1).clamp(-1, 1)
    path = curves.path[curve]
    joined = (path[1:] == path[:-1]) & ~flat[1:] & ~flat[:-1]
    turn = ((1 - cosine) / 2).sqrt().where(joined, 1)
    one = turn.new_ones(1)
    before = -reach * torch.cat([one, turn])
    after = length + reach * torch.cat([turn, one])

    (tx, ty), (ax, ay) = direction.unbind(1), start.unbind(1)
    low = ay + torch.minimum(before * ty, after * ty) - reach * tx.abs()
    high = ay + torch.maximum(before * ty, after * ty) + reach * tx.abs()
    left = ax + torch.minimum(before * tx, after * tx) - reach * ty.abs()
    right = ax + torch.maximum(before * tx, after * tx) + reach * ty.abs()
    first, rows = _centres(low, high, height)
    seen = (right > 0) & (left < width) & (curves.radius[curve] >= 0)
    piece, step = _expand(rows * seen)

    # In the row at distance v below the piece's start, u = x − ax is bounded by both pairs of
    # sides: before ≤ u tx + v ty ≤ after and −reach ≤ v tx − u ty ≤ reach.
    row = first[piece] + step
    tx, ty, ax, reach = tx[piece], ty[piece], ax[piece], reach[piece]
    v = row + 0.5 - ay[piece]
    ends = _between(before[piece] - v * ty, after[piece] - v * ty, tx)
    sides = _between(v * tx - reach, v * tx + reach, ty)
    low, high = torch.maximum(ends[0], sides[0]), torch.minimum(ends[1], sides[1])
    first, columns = _centres(ax + low, ax + high, width)
    span, step = _expand(columns)
    return piece[span], first[span] + step, row[span]


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


def _project(x: Tensor, y: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return where on each piece, from 0 to 1, its point nearest to (x, y) lies."""
    (ax, ay), (bx, by) = start.unbind(1), end.unbind(1)
    ux, uy = bx - ax, by - ay
    square = ux * ux + uy * uy
    place = ((x - ax) * ux + (y - ay) * uy) / square.where(square > 0, 1)
    return place.clamp(0, 1)


def _coverage(
    x: Tensor, y: Tensor, start: Tensor, end: Tensor, place: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how much of each sample a stroke of that radius covers, and the distance."""
    nearest = torch.lerp(start, end, place[:, None])
    distance = torch.stack([x, y], dim=1).sub(nearest).norm(dim=1)
    return _edge(radius - distance) + _edge(radius + distance) - 1, distance


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
    pieces = _cut(curves, height, width)
    # A line from its end to its start closes every path; in a closed one that has no length.
    _, length = curves.path.unique_consecutive(return_counts=True)
    last = torch.cumsum(length, 0) - 1
    first = last - length + 1
    start = torch.cat([pieces.start, curves.control[last, 3]]).double()
    end = torch.cat([pieces.end, curves.control[first, 0]]).double()
    layer = curves.layer[torch.cat([pieces.curve, first])]

    with torch.no_grad():
        corner = start.new_tensor([width, height])
        low = start.new_full((len(drawing.image), 2), math.inf)
        high = start.new_full((len(drawing.image), 2), -math.inf)
        for ends in (start, end):
            index = layer[:, None].expand_as(ends)
            low.scatter_reduce_(0, index, ends, "amin")
            high.scatter_reduce_(0, index, ends, "amax")
        low = low.floor().clamp_min(0).minimum(corner).long()
        high = high.ceil().clamp_min(0).minimum(corner).long()
        shape = (high - low).clamp_min(0)
        # One more column takes what lies right of the canvas, so that every row sums to zero.
        stride = shape[:, 0] + 1
        cells = stride * shape[:, 1] * (shape[:, 0] > 0)
        origin = torch.cumsum(cells, 0) - cells
        bottom = torch.minimum(start[:, 1], end[:, 1]).floor().long()
        top = torch.maximum(start[:, 1], end[:, 1]).ceil().long()
        bottom = bottom.maximum(low[layer, 1]).minimum(high[layer, 1])
        rows = (top.minimum(high[layer, 1]) - bottom).clamp_min(0)
        rows = rows * ((start[:, 1] != end[:, 1]) & (cells[layer] > 0))
        piece, step = _expand(rows)
        row = bottom[piece] + step
        layer = layer[piece]

    # The part of each piece within a row: from (x0, y0) to (x1, y1).
    (ax, ay), (bx, by) = start[piece].unbind(1), end[piece].unbind(1)
    y0, y1 = ay.clamp(row, row + 1), by.clamp(row, row + 1)
    slope = (bx - ax) / (by - ay)
    x0, x1 = ax + (y0 - ay) * slope, ax + (y1 - ay) * slope
    with torch.no_grad():
        left = torch.minimum(x0, x1).floor().long()
        right = torch.maximum(x0, x1).floor().long() + 1
        left = left.maximum(low[layer, 0]).minimum(high[layer, 0])
        right = right.maximum(left).minimum(high[layer, 0])
        part, step = _expand(right - left + 1)
        column = left[part] + step
        cell = origin[layer[part]] + (row - low[layer, 1])[part] * stride[layer[part]]
        cell = cell + column - low[layer[part], 0]
        ends_here = column == high[layer[part], 0]
        starts_here = step == 0
    x0, x1 = x0[part], x1[part]
    share = _share_right(column + 1, x0, x1).where(~ends_here, 1)
    before = _share_right(column, x0, x1).where(~starts_here, 0)
    change = (y1 - y0)[part] * (share - before)
    winding = change.new_zeros(int(cells.sum())).index_add(0, cell, change).cumsum(0)

    with torch.no_grad():
        (cell,) = (winding.abs() > 1e-6).nonzero(as_tuple=True)
        layer = torch.searchsorted(origin + cells, cell, right=True)
        place = cell - origin[layer]
        column = place % stride[layer]
        kept = column < shape[layer, 0]
        cell, layer, place, column = cell[kept], layer[kept], place[kept], column[kept]
        row = place // stride[layer] + low[layer, 1]
        sample = (drawing.image[layer] * height + row) * width + column + low[layer, 0]
    inside = winding.index_select(0, cell).abs()
    odd = 1 - (inside % 2 - 1).abs()
    coverage = odd.where(drawing.even_odd[layer], inside.clamp_max(1))
    return _Fragments(sample, layer, coverage.to(curves.control))


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
    new = torch.ones_like(key)
    new[1:] = key[1:] != key[:-1]
    group = torch.cumsum(new, 0) - 1
    return order, group, int(group[-1]) + 1 if len(group) else 0


def _composite(sample: Tensor, layer: Tensor, source: Tensor, total: int, layers: int) -> Tensor:
    """Paint fragments (N, 4), premultiplied RGBA, over each other; return samples (total, 4)."""
    with torch.no_grad():
        order, _, _ = _runs(sample, layer, layers)
        place, depth = sample[order].unique_consecutive(return_counts=True)
        first = torch.cumsum(depth, 0) - depth
        # Deepest samples first: those with more than k fragments are then a prefix, for every k.
        depth, deepest = depth.sort(descending=True, stable=True)
        sizes = len(depth) - torch.cumsum(depth.bincount(), 0)[:-1]
        level, slot = _expand(sizes)
        order = order[first[deepest][slot] + level]
    painted = _Over.apply(source.index_select(0, order), sizes.tolist())
    return source.new_zeros(total, 4).index_copy(0, place[deepest], painted)


class _Over(torch.autograd.Function):
    """The "over" operator of Porter and Duff (1984), from the lowest level to the highest.

    `source` (N, 4) is premultiplied RGBA, level after level. Each level lies on the first
    samples of the level below: `sizes` says how many.
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, sizes: list[int]) -> Tensor:
        behind = torch.empty_like(source)
        result = source.new_zeros(max(sizes, default=0), 4)
        first = 0
        for size in sizes:
            level = slice(first, first + size)
            behind[level] = result[:size]
            result[:size] *= 1 - source[level, 3:]
            result[:size] += source[level]
            first += size
        ctx.save_for_backward(source, behind)
        ctx.sizes = sizes
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        source, behind = ctx.saved_tensors
        gradient = gradient.clone()
        result = torch.empty_like(source)
        last = len(source)
        for size in reversed(ctx.sizes):
            level = slice(last - size, last)
            result[level] = gradient[:size]
            gradient[:size] *= 1 - source[level, 3:]
            last -= size
        result[:, 3] -= (result * behind).sum(1)
        return result, None
