"""Colour gradients, as in diffvg.

The renderer calls them as functions of points on the canvas. They are differentiable in all four
tensors. Colours are interpolated with straight alpha and stay constant beyond the first and last
stop.
"""

import torch
from torch import Tensor


class LinearGradient:
    """Colours that change along a line.

    Args:
        begin, end: (2,), the points of offset 0 and 1, in pixels of the canvas.
        offsets: (S,), of the stops, in ascending order.
        stop_colors: (S, 4), RGBA with straight alpha, in [0, 1].
    """

    def __init__(self, begin: Tensor, end: Tensor, offsets: Tensor, stop_colors: Tensor) -> None:
        self.begin = begin
        self.end = end
        self.offsets = offsets
        self.stop_colors = stop_colors

    def to(self, device: torch.device) -> "LinearGradient":
        """Return the same gradient on a device."""
        begin, end = self.begin.to(device), self.end.to(device)
        return LinearGradient(begin, end, self.offsets.to(device), self.stop_colors.to(device))

    def __call__(self, points: Tensor) -> Tensor:
        """Return the colours (N, 4) at points (N, 2)."""
        along = self.end - self.begin
        # As in diffvg: no division by zero if both points coincide.
        offset = (points - self.begin) @ along / (along @ along).clamp_min(1e-3)
        return colour_between(offset, self.offsets, self.stop_colors)


class RadialGradient:
    """Colours that change from a centre outwards.

    Args:
        center: (2,), the point of offset 0, in pixels of the canvas.
        radius: (2,), the half-axes of the ellipse of offset 1, in pixels.
        offsets: (S,), of the stops, in ascending order.
        stop_colors: (S, 4), RGBA with straight alpha, in [0, 1].
    """

    def __init__(
        self, center: Tensor, radius: Tensor, offsets: Tensor, stop_colors: Tensor
    ) -> None:
        self.center = center
        self.radius = radius
        self.offsets = offsets
        self.stop_colors = stop_colors

    def to(self, device: torch.device) -> "RadialGradient":
        """Return the same gradient on a device."""
        center, radius = self.center.to(device), self.radius.to(device)
        return RadialGradient(center, radius, self.offsets.to(device), self.stop_colors.to(device))

    def __call__(self, points: Tensor) -> Tensor:
        """Return the colours (N, 4) at points (N, 2)."""
        # The square root has no gradient at the centre.
        square = ((points - self.center) / self.radius).square().sum(1).clamp_min(1e-12)
        return colour_between(square.sqrt(), self.offsets, self.stop_colors)


def stops_in_order(offsets: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
    """Return stops in ascending order that the renderer draws as the given ones.

    Stops that ascend are returned as they are. For others, the renderer finds the segment of an
    offset by bisection. Between neighbouring offsets that segment is the same, so two stops for
    each such interval describe what is drawn.

    Args:
        offsets: (S,).
        colors: (S, 4).

    Returns:
        Offsets (T,) and colours (T, 4).
    """
    if (offsets.diff() >= 0).all():
        return offsets, colors
    # In a falling segment the colour changes over a length of 1, as `_mixed` has it.
    ends = torch.cat([offsets, offsets + 1]).unique()
    middles = torch.cat([ends[:1] - 1, (ends[1:] + ends[:-1]) / 2, ends[-1:] + 1])
    after = _following_stop(middles, offsets).repeat_interleave(2)[1:-1]
    ends = ends.repeat_interleave(2)
    return ends, _mixed(ends, after, offsets, colors)


def colour_between(offset: Tensor, offsets: Tensor, colors: Tensor) -> Tensor:
    """Return the colours (N, 4) at offsets (N,), between the stops' offsets (S,), colors (S, 4)."""
    return _mixed(offset, _following_stop(offset, offsets), offsets, colors)


def _following_stop(offset: Tensor, offsets: Tensor) -> Tensor:
    """Return for offsets (N,) the numbers of the stops at the ends of their segments."""
    after = torch.searchsorted(offsets.detach(), offset.detach(), right=True)
    return after.clamp(1, max(len(offsets) - 1, 1)).clamp_max(len(offsets) - 1)


def _mixed(offset: Tensor, after: Tensor, offsets: Tensor, colors: Tensor) -> Tensor:
    """Return the colours (N, 4) at offsets (N,) in the segments that end at stops (N,)."""
    before = (after - 1).clamp_min(0)
    low, high = offsets[before], offsets[after]
    share = ((offset - low) / (high - low).where(high > low, 1)).clamp(0, 1)
    return torch.lerp(colors[before], colors[after], share[:, None])
