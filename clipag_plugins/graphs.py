"""Image towers as CUDA graphs: a GPU runs small kernels faster than Python starts them."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from .base import ImageTower
from .mini import MiniImageTower
from .vit import VisionTransformer

# Calls with the same shape before the tower is recorded, which takes as long as five of them.
CALLS_BEFORE_RECORDING = 8


class Replayed:
    """An image tower that is recorded for each shape of its input, forward and backward.

    What is replayed are the same kernels on the same weights, so the numbers are the same. A tower
    is called as usual where a graph could miss something: without a gradient, under hooks, on
    other devices than CUDA, in other threads than the main one, and if it cannot be recorded.

    Args:
        tower: maps views (N, 3, S, S) to embeddings (N, D). The embeddings of a replay are
            overwritten by the next one.
    """

    def __init__(self, tower: nn.Module):
        self.tower = tower
        self._calls: Counter[Any] = Counter()
        self._graphs: dict[Any, Callable[[Tensor], Tensor]] = {}

    def __call__(self, views: Tensor) -> Tensor:
        """Return the embeddings (N, D) of views (N, 3, S, S)."""
        if not (views.is_cuda and views.requires_grad and torch.is_grad_enabled()):
            return self._call(views)
        # A graph reads the weights where they were when it was recorded.
        weights = next(self.tower.parameters()).data_ptr()
        key = (views.shape, views.stride(), views.dtype, views.device, weights)
        if key not in self._graphs:
            self._calls[key] += 1
            if self._calls[key] <= CALLS_BEFORE_RECORDING or not self._may_be_recorded():
                return self._call(views)
            self._graphs[key] = self._recorded(views)
        return self._graphs[key](views) if not _has_hooks(self.tower) else self._call(views)

    def _call(self, views: Tensor) -> Tensor:
        embeddings: Tensor = self.tower(views)
        return embeddings

    def _may_be_recorded(self) -> bool:
        """Whether the tower is one of those that are known to do all their work on the GPU."""
        tower = self.tower.tower if isinstance(self.tower, ImageTower) else self.tower
        return (
            type(tower) in (MiniImageTower, VisionTransformer)
            and type(self.tower) in (ImageTower, VisionTransformer)
            and not _has_hooks(self.tower)
            and threading.current_thread() is threading.main_thread()
        )

    def _recorded(self, views: Tensor) -> Callable[[Tensor], Tensor]:
        """Record the tower for such views; if that fails, return the tower itself."""
        sample = torch.empty_like(views).copy_(views.detach()).requires_grad_(True)
        try:
            graph = cast(
                Callable[[Tensor], Tensor],
                torch.cuda.make_graphed_callables(self._call, (sample,)),
            )
        except RuntimeError:  # such as too little memory: a graph keeps its own
            graph = self._call
        torch.cuda.empty_cache()  # of the recording
        return graph


def _has_hooks(tower: nn.Module) -> bool:
    """Whether somebody looks into a tower, or has replaced a part of its code."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        for module in tower.modules()
    )
