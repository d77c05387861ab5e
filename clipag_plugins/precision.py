"""The number format that an image tower computes in, chosen by what the hardware supports."""

import copy

import torch
from torch import nn

from . import packed
from .defaults import PRECISIONS
from .errors import ClipagError

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISIONS}


def choose(precision: str, tower: nn.Module) -> torch.dtype:
    """Return the dtype that `precision` names; "auto" is the fastest on the tower's device.

    "auto" leaves a tower alone that is not float32, because its user converted it, and a tower on
    the CPU with parts that say that they need float32 there.

    Raises:
        ClipagError: `precision` is neither "auto" nor in `PRECISIONS`.
    """
    if precision == "auto":
        weight = next(tower.parameters())
        if weight.device.type == "cpu" and any(
            getattr(module, "needs_float32_on_cpu", False) for module in tower.modules()
        ):
            return weight.dtype
        return fastest(weight.device) if weight.dtype == torch.float32 else weight.dtype
    if precision not in DTYPES:
        raise ClipagError(f"`precision` is {precision!r}: choose auto, {', '.join(DTYPES)}.")
    return DTYPES[precision]


def fastest(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device has instructions for it, float16 on older GPUs, or float32.

    The choice depends on what the hardware says that it has, never on a stopwatch: a precision
    changes the picture, and the same seed must draw the same picture on a busy machine. CPUs with
    AMX or AVX512-BF16 and GPUs with tensor cores gain at least a factor of two; other devices
    emulate bfloat16 and are slower with it. float16 is used only on GPUs without bfloat16, because
    its range is too small for the gradients of some towers.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        has_tensor_cores = torch.cuda.get_device_capability(device) >= (7, 0)
        return torch.float16 if has_tensor_cores else torch.float32
    is_native = device.type == "cpu" and packed.has_bfloat16()
    return torch.bfloat16 if is_native else torch.float32


def in_precision(tower: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the tower itself, or a copy of it in `dtype` if its weights have another dtype.

    A copy is faster than autocast: it casts the weights once instead of at every step. Its weights
    are frozen, and must not be changed: on a CPU they are packed too (packed.py).
    """
    if next(tower.parameters()).dtype == dtype:
        return tower
    converted = frozen_copy(tower, dtype)
    packed.allow(converted)
    return converted


def frozen_copy(tower: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a tower in `dtype`, whose weights take no gradient."""
    return copy.deepcopy(tower).to(dtype).requires_grad_(False)
