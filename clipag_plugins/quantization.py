"""Weights in 8 bits, half the size of float16: symmetric, with one scale for each row.

A row is an entry along a tensor's first dimension: a token's embedding, the kernel of an output
channel. Only files hold such weights. Models compute with what `dequantize` returns.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import ClipagError

LEVELS = 127
SCALE = ".scale"  # follows the name of a tensor in the name of its scales


def quantize(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in 8 bits, which `dequantize` reads.

    Args:
        state: tensors of any shape.

    Returns:
        Tensors of two or more dimensions as int8 of the same shape, and the float16 scales of
        their rows, (rows,), under "NAME.scale"; all other tensors as float16, and whole numbers
        as they are.
    """
    quantized = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            quantized[name] = tensor
            continue
        if tensor.ndim < 2:
            quantized[name] = tensor.half()
            continue
        rows = tensor.float().flatten(1)
        scales = (rows.abs().amax(dim=1) / LEVELS).half()
        # A row of zeros has a scale of zero.
        levels = (rows / scales.float()[:, None]).nan_to_num(0, LEVELS, -LEVELS).round()
        levels = levels.clamp(-LEVELS, LEVELS)
        quantized[name] = levels.to(torch.int8).view(tensor.shape)
        quantized[name + SCALE] = scales
    return quantized


def dequantize(state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return the state dict that was quantized, in float32 where it was in 8 bits.

    Values differ from the original ones by at most 1/254 of their row's largest absolute value,
    and by what float16 rounds. Tensors without scales are returned as they are.

    Args:
        state: the result of `quantize`, or any other state dict.
        what: how messages name it.

    Raises:
        ClipagError: a tensor has not one scale for each row.
    """
    scales = {name: state[name + SCALE] for name in state if name + SCALE in state}
    tensors = {n: t for n, t in state.items() if n.removesuffix(SCALE) not in scales or n in scales}
    for name, scale in scales.items():
        tensor = state[name]
        if tensor.ndim == 0 or scale.shape != tensor.shape[:1]:
            raise ClipagError(f"{what} is damaged: {name} has not one scale for each row.")
        tensors[name] = tensor.float().mul_(scale.float().view(-1, *[1] * (tensor.ndim - 1)))
    return tensors
