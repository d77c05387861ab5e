"""A differentiable renderer of paths, in torch alone.

It works in three steps. The tensors of each list covered samples only, so the cost follows the
covered area and not the number of strokes times the number of pixels:

1. **Coverage of strokes** (`coverage.cover_strokes`). Curves are cut into straight pieces. Around
   each piece lies a rectangle that holds every pixel whose nearest point of the stroke may be on
   it; its pixels are listed row by row. A pixel's coverage depends only on its distance d to the
   nearest piece: with r half the width, it is F(r − d) + F(r + d) − 1, where F is the share of a
   pixel that lies behind a straight edge. So ends and corners are round, and a width below 0
   draws nothing.
2. **Coverage of fills** (`coverage.cover_fills`). The winding number, averaged over each pixel, is
   summed exactly from the areas to the right of each piece of the outline (the accumulation buffer
   of font rasterisers). The fill rule is applied to that average.
3. **Compositing** (`compositing.composite`). The fragments (pixel, layer, coverage) are sorted and
   painted "over" each other: first the lowest fragment of every pixel, then the second, and so on.

The gradients are exact for this computation. The nearest piece, and the nearest place on it, are
computed without autograd and then fixed: at the nearest point, moving along the piece does not
change the distance (the envelope theorem), so the distance to that fixed place has the right
gradient. Everything is smooth in the parameters except where a pixel's nearest point jumps from
one part of a stroke to another; even there the distance is continuous.

Pictures are rendered at `samples` times the size and then averaged, so a pixel above is a sample.
That improves round ends, and pixels where several edges of one shape meet: there the fill rule of
the averaged winding number and the larger of two coverages are approximations. Device and dtype
follow the inputs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.vector.compositing import composite
from clipag_plugins.integrations.vector.coverage import (
    Fragments,
    columns_at,
    cover_fills,
    cover_strokes,
    sort_fragments,
)
from clipag_plugins.integrations.vector.paths import Curves, Group, Paint, to_curves

_LARGEST = 1e15  # of coordinates and colours; squares of larger ones overflow single precision


class _Layers(NamedTuple):
    """What is painted: curves, and tables over the L layers, in paint order.

    Attributes:
        fills, strokes: curves, or None if there are none.
        image: the picture of each layer, (L,).
        colour: (L, 4).
        even_odd: whether a layer is filled by the even-odd rule, (L,), bool.
        functions: paints that are functions, by the number of their layer.
    """

    fills: Curves | None
    strokes: Curves | None
    image: Tensor
    colour: Tensor
    even_odd: Tensor
    functions: dict[int, Callable[[Tensor], Tensor]]


def render(scenes: Sequence[Sequence[Group]], size: tuple[int, int], samples: int = 2) -> Tensor:
    """Render drawings.

    Args:
        scenes: B drawings; the groups of each are painted in order.
        size: height and width of the canvas in pixels.
        samples: coverage is computed on this many samples per pixel and axis.

    Returns:
        (B, 4, H, W), RGBA with premultiplied alpha; see `compose_on` and `straight`.

    Raises:
        ClipagError: there is nothing to render, a parameter is not finite, or points do not fit
            their segments.
    """
    groups = [group for scene in scenes for group in scene if group.paths]
    if not groups:
        raise ClipagError("There is nothing to render: give at least one group with a path.")
    transparent = groups[0].paths[0].points.new_zeros(4)
    # Every group makes two layers, its fill and then its stroke.
    paints = [paint for group in groups for paint in (group.fill, group.stroke)]
    image = [i for i, scene in enumerate(scenes) for g in scene if g.paths for _ in range(2)]
    even_odd = [group.use_even_odd_rule for group in groups for _ in range(2)]
    layers = _Layers(
        fills=_curves_of(groups, paints, 0),
        strokes=_curves_of(groups, paints, 1),
        image=torch.tensor(image, device=transparent.device),
        colour=torch.stack(
            [p.to(transparent) if isinstance(p, Tensor) else transparent for p in paints]
        ),
        even_odd=torch.tensor(even_odd, device=transparent.device),
        functions={i: p for i, p in enumerate(paints) if callable(p)},
    )
    return _render(layers, len(scenes), size, samples)


def _curves_of(groups: Sequence[Group], paints: Sequence[Paint | None], side: int) -> Curves | None:
    """Return the curves of all fills (`side` 0) or all strokes (`side` 1) that have a paint."""
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
    """Render drawings that have the same number of cubic paths, painted in order.

    Args:
        points: (B, P, 3S + 1, 2), or (B, P, 3S, 2) if closed: ends and control points in pixels.
        size: height and width of the canvas in pixels.
        strokes: (B, P, 4), colours of the strokes, RGBA with straight alpha, in [0, 1].
        widths: (B, P), full widths of the strokes in pixels; 1 by default.
        fills: (B, P, 4), colours of the insides, by the non-zero rule. An open path is filled as
            if a line closed it.
        segments: (B, P), how many of its S segments each open path has; all by default.
        is_closed: whether the last segment of each path ends at its first point.
        samples: coverage is computed on this many samples per pixel and axis.

    Returns:
        (B, 4, H, W), RGBA with premultiplied alpha; see `compose_on` and `straight`.

    Raises:
        ClipagError: a parameter is not finite, points do not make whole segments, or `segments`
            are given for closed paths.
    """
    if is_closed and segments is not None:
        raise ClipagError(
            "Closed paths have all their segments: leave segments out, or set is_closed=False."
        )
    batch, paths, count, _ = points.shape
    segment_count, rest = divmod(count - (not is_closed), 3)
    if rest or segment_count < 1:
        raise ClipagError(
            f"{count} points a path do not make whole cubic segments: give each "
            f"{'closed path 3S' if is_closed else 'open path 3S + 1'} points."
        )
    device = points.device
    corner = 3 * torch.arange(segment_count, device=device)[:, None] + torch.arange(
        4, device=device
    )
    control = points[:, :, corner % count].flatten(0, 1)
    is_used = torch.ones(batch * paths, segment_count, dtype=torch.bool, device=device)
    if segments is not None:
        is_used = torch.arange(segment_count, device=device) < segments.reshape(-1, 1)
    path = torch.arange(batch * paths, device=device).repeat_interleave(is_used.sum(1))
    width = points.new_ones(batch * paths) if widths is None else widths.reshape(-1)
    curves = Curves(control[is_used], width[path] / 2, path, 2 * path)
    transparent = points.new_zeros(batch, paths, 4)
    colour = torch.stack([transparent if c is None else c for c in (fills, strokes)], dim=2)
    layers = _Layers(
        fills=None if fills is None else curves,
        strokes=None if strokes is None else curves._replace(layer=2 * path + 1),
        image=torch.arange(batch, device=device).repeat_interleave(2 * paths),
        colour=colour.flatten(0, 2),
        even_odd=torch.zeros(2 * batch * paths, dtype=torch.bool, device=device),
        functions={},
    )
    return _render(layers, batch, size, samples)


def compose_on(image: Tensor, background: Tensor) -> Tensor:
    """Compose premultiplied RGBA (B, 4, H, W) on an opaque colour (3,), as RGB (B, 3, H, W)."""
    return image[:, :3] + (1 - image[:, 3:]) * background.view(3, 1, 1)


def straight(image: Tensor) -> Tensor:
    """Return premultiplied RGBA (B, 4, H, W) with straight alpha; transparent pixels are black."""
    alpha = image[:, 3:]
    return torch.cat([image[:, :3] / alpha.where(alpha > 0, 1), alpha], dim=1)


def _render(layers: _Layers, batch: int, size: tuple[int, int], samples: int) -> Tensor:
    """Return B pictures, premultiplied RGBA, (B, 4, H, W)."""
    height, width = size[0] * samples, size[1] * samples
    empty = layers.image[:0]
    fragments = [Fragments(empty, empty, layers.colour[:0, 0])]
    if layers.fills is not None and len(layers.fills.path):
        fills = _scaled(layers.fills, samples)
        fragments.append(cover_fills(fills, layers.image, layers.even_odd, height, width))
    if layers.strokes is not None and len(layers.strokes.path):
        strokes = _scaled(layers.strokes, samples)
        fragments.append(cover_strokes(strokes, layers.image, height, width))
    _check_finite("colours", layers.colour)
    sample, layer, coverage = (torch.cat(parts) for parts in zip(*fragments, strict=True))
    if layers.fills is not None:  # strokes alone are sorted already
        order, _, _ = sort_fragments(sample, layer, len(layers.image))
        sample, layer = sample[order], layer[order]
        coverage = coverage.gather(0, order)
    colour = columns_at(layers.colour.mT, layer)
    for number, function in layers.functions.items():
        (where,) = (layer == number).nonzero(as_tuple=True)
        place = sample[where] % (height * width)
        centre = torch.stack([place % width, place // width], dim=1) + 0.5
        painted = function(centre.to(colour) / samples).to(colour)
        colour = colour.index_copy(1, where, painted.mT)
    alpha = coverage * colour[3:]
    source = torch.cat([alpha * colour[:3], alpha])
    picture = composite(sample, source, batch * height * width)
    return avg_pool2d(picture.view(4, batch, height, width), samples).transpose(0, 1)


def _scaled(curves: Curves, samples: int) -> Curves:
    """Check the numbers of curves, and return the curves in samples instead of pixels."""
    _check_finite("points", curves.control)
    _check_finite("stroke widths", curves.radius)
    return curves._replace(control=curves.control * samples, radius=curves.radius * samples)


def _check_finite(name: str, values: Tensor) -> None:
    if not (values.abs() <= _LARGEST).all():
        raise ClipagError(
            f"The {name} of the drawing hold NaN or numbers beyond {_LARGEST:g}: correct the "
            "input, or lower the learning rate of the ascent."
        )
