"""What the processes of a run tell each other. A run of one process says nothing."""

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def join(device: torch.device) -> None:
    """Join the other processes if `torchrun` started this one."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    """Return this process' number."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """Return every process' value, in the order of their ranks."""
    if count() == 1:
        return [value]
    values: list[T | None] = [None] * count()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def stack(tensor: Tensor) -> Tensor:
    """Return every process' tensor, which all have one shape, stacked on a new first axis."""
    if count() == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(count())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def total(tensor: Tensor) -> Tensor:
    """Return the sum over the processes."""
    return stack(tensor).sum(dim=0)
