"""Compositing: paint fragments over each other, with gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipag_plugins.integrations.vector.coverage import columns_at, expand


def composite(sample: Tensor, source: Tensor, total: int) -> Tensor:
    """Paint fragments over each other.

    Args:
        sample: the sample of each fragment, (N,), sorted; those of one sample in paint order.
        source: the fragments, premultiplied RGBA, (4, N).
        total: number of samples.

    Returns:
        The samples, premultiplied RGBA, (4, total).
    """
    with torch.no_grad():
        place, depth = sample.unique_consecutive(return_counts=True)
        first = torch.cumsum(depth, 0) - depth
        # Deepest samples first: those with more than k fragments are then a prefix, for every k.
        depth, deepest = depth.sort(descending=True, stable=True)
        place, first = place[deepest], first[deepest]
        sizes = len(depth) - torch.cumsum(depth.bincount(), 0)[:-1]
        level, slot = expand(sizes)
        order = first.index_select(0, slot) + level
    painted = _Over.apply(columns_at(source, order), sizes.tolist())
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
