"""The number format that an image tower computes in, chosen by measuring the device."""

import copy
import time
from functools import cache

import torch
from torch import nn

from .defaults import PRECISIONS
from .errors import ClipagError

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISIONS}
# The speed-up that makes lower precision worth its rounding errors. The wide margin also keeps two
# runs on one machine from choosing differently.
WORTHWHILE = 2.0


def choose(precision: str, tower: nn.Module) -> torch.dtype:
    """Return the dtype that `precision` names; "auto" is the fastest on the tower's device.

    "auto" leaves a tower alone that is not float32, because its user converted it.

    Raises:
        ClipagError: `precision` is neither "auto" nor in `PRECISIONS`.
    """
    if precision == "auto":
        weight = next(tower.parameters())
        return fastest(weight.device) if weight.dtype == torch.float32 else weight.dtype
    if precision not in DTYPES:
        raise ClipagError(f"`precision` is {precision!r}: choose auto, {', '.join(DTYPES)}.")
    return DTYPES[precision]


@cache
def fastest(device: torch.device) -> torch.dtype:
    """Return bfloat16 or float16 if its matrix products are at least twice as fast as float32's.

    That is so on CPUs with AMX or AVX512-BF16 and on GPUs with tensor cores. Other CPUs emulate
    bfloat16 and are far slower with it. float16 is considered only on GPUs without bfloat16: its
    range is too small for the gradients of some towers.
    """
    lower = torch.bfloat16
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        lower = torch.float16
    # Where `lower` is emulated, a large product takes long. A small one, which takes no noticeable
    # time, rules `lower` out there. It gains little from fast hardware, so it decides nothing else.
    small = [products_per_second(dtype, device, 128) for dtype in (lower, torch.float32)]
    if WORTHWHILE * small[0] < small[1]:
        return torch.float32
    gain = products_per_second(lower, device) / products_per_second(torch.float32, device)
    return lower if gain >= WORTHWHILE else torch.float32


def products_per_second(dtype: torch.dtype, device: torch.device, side: int = 1024) -> float:
    """Return how many products of side × side matrices the device computes per second."""
    a = torch.ones(side, side, dtype=dtype, device=device)
    times = []
    for _ in range(4):  # the first one is a warm-up
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 1 / min(times)


def in_precision(tower: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the tower itself, or a copy of it in `dtype` if its weights have another dtype.

    A copy is faster than autocast: it casts the weights once instead of at every step.
    """
    if next(tower.parameters()).dtype == dtype:
        return tower
    return copy.deepcopy(tower).to(dtype)
