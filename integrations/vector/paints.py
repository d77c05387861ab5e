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
        return _between_stops(offset, self.offsets, self.stop_colors)


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
        return _between_stops(square.sqrt(), self.offsets, self.stop_colors)


def _between_stops(offset: Tensor, offsets: Tensor, colors: Tensor) -> Tensor:
    """Return the colours (N, 4) at offsets (N,), between the stops' offsets (S,), colors (S, 4)."""
    after = torch.searchsorted(offsets.detach(), offset.detach(), right=True)
    after = after.clamp(1, max(len(offsets) - 1, 1)).clamp_max(len(offsets) - 1)
    before = (after - 1).clamp_min(0)
    low, high = offsets[before], offsets[after]
    share = ((offset - low) / (high - low).where(high > low, 1)).clamp(0, 1)
    return torch.lerp(colors[before], colors[after], share[:, None])
