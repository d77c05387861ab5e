"""The number format that a tower guides in: measured on the device at hand, not looked up."""

import copy
import time
from functools import cache

import torch
from torch import nn

from .errors import ClipagError

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Lower precision must be worth its rounding. A wide margin also means that two runs on one
# machine never choose differently.
WORTHWHILE = 2.0


def choose(precision: str, tower: nn.Module) -> torch.dtype:
    """Return the type that `precision` names; "auto" is the fastest on the tower's device.

    A tower that its user has already made half precision stays as it is under "auto".

    Raises:
        ClipagError: it is neither "auto" nor a name of `PRECISIONS`.
    """
    if precision == "auto":
        weight = next(tower.parameters())
        return fastest(weight.device) if weight.dtype == torch.float32 else weight.dtype
    if precision not in PRECISIONS:
        raise ClipagError(f"precision is {precision!r}: choose auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]


@cache
def fastest(device: torch.device) -> torch.dtype:
    """Return bfloat16 or float16 if its matrix products are at least twice as fast as float32's.

    CPUs with AMX or AVX512-BF16 and GPUs with tensor cores pass; other CPUs emulate bfloat16
    and fall far behind. float16 is considered on GPUs that lack bfloat16 alone: its range is
    too small to be safe for every tower's gradient.
    """
    lower = torch.bfloat16
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        lower = torch.float16
    # A product too small to notice, and an answer at once where `lower` is only emulated. Elsewhere
    # so small a product gains little, so it decides nothing unless it is far behind.
    small = [products_per_second(dtype, device, 128) for dtype in (lower, torch.float32)]
    if WORTHWHILE * small[0] < small[1]:
        return torch.float32
    gain = products_per_second(lower, device) / products_per_second(torch.float32, device)
    return lower if gain >= WORTHWHILE else torch.float32


def products_per_second(dtype: torch.dtype, device: torch.device, side: int = 1024) -> float:
    """Return how many side × side matrix products the device does a second."""
    a = torch.ones(side, side, dtype=dtype, device=device)
    times = []
    for _ in range(4):  # the first also warms up
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 1 / min(times)


def in_precision(tower: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the tower itself, or a copy of it in `dtype` if its weights are of another type.

    A copy, rather than autocast: the weights are cast once and not at every step.
    """
    if next(tower.parameters()).dtype == dtype:
        return tower
    return copy.deepcopy(tower).to(dtype)
