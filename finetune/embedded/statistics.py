"""The statistics of a trunk's layers: what pictures look like to it, layer by layer.

An image whose statistics differ from those of natural pictures looks like no picture
(DeepInversion: Yin et al., CVPR 2020, section 3.1).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clipag_plugins.lite import LiteTower, NormedConv

# The stem sees the colours and edges themselves, so it counts as much as several later layers.
STEM_WEIGHT = 10.0
# Keeps the quotients finite for channels that are nearly constant over natural pictures.
SMALLEST_DEVIATION, SMALLEST_VARIANCE = 0.05, 1e-4


class Recorder:
    """Measures the outputs of a tower's convolutions in each pass.

    Args:
        tower: the tower.
        measure: maps a layer and its output (B, C, H, W) to what is to be recorded.
    """

    def __init__(self, tower: LiteTower, measure: Callable[[NormedConv, Tensor], Tensor]):
        self.layers = [module for module in tower.modules() if isinstance(module, NormedConv)]
        self.measure = measure
        self.records: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Record every pass through the tower inside this block, layer by layer."""
        self.records = []
        hooks = [layer.register_forward_hook(self._record) for layer in self.layers]
        try:
            yield self.records
        finally:
            for hook in hooks:
                hook.remove()

    def _record(self, layer: NormedConv, _: object, output: Tensor) -> None:
        self.records.append(self.measure(layer, output))


def batch_distance(layer: NormedConv, output: Tensor) -> Tensor:
    """Return how far a batch's statistics are from those that batch normalisation fixed, a scalar.

    It is the mean over the channels of the squared differences of mean and deviation, both in
    units of the fixed deviation. Only a batch of many different pictures can be near.
    """
    mean = output.mean(dim=(0, 2, 3), dtype=torch.float32)
    variance = output.square().mean(dim=(0, 2, 3), dtype=torch.float32) - mean.square()
    deviation = variance.clamp_min(SMALLEST_VARIANCE).sqrt()
    expected = layer.gain.abs()
    of_mean = (mean - layer.bias) / (expected + SMALLEST_DEVIATION)
    of_deviation = (deviation - expected) / (expected + SMALLEST_DEVIATION)
    return of_mean.square().mean() + of_deviation.square().mean()


def total(distances: list[Tensor]) -> Tensor:
    """Return the sum of the layers' distances, the stem's weighted by `STEM_WEIGHT`."""
    return torch.stack(distances).sum(dim=0) + (STEM_WEIGHT - 1) * distances[0]
