"""Communication between the processes of a run. With one process, nothing is sent."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def join(device: torch.device) -> None:
    """Join the other processes if `torchrun` started this one."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def leave() -> None:
    """Leave the other processes, when all common work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yield a list to which SIGTERM and SIGINT (Ctrl-C) are added, instead of ending the process.

    In a run of one process, the second signal of a kind ends it as usual. torchrun may send
    several, so there all are noted.
    """
    noted: list[int] = []
    usual: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        if count() == 1:
            signal.signal(number, usual[number])

    if threading.current_thread() is threading.main_thread():  # others may set no handler
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored in the background of a script
                usual[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)


def rank() -> int:
    """Return this process's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """Return every process's value, in the order of their ranks."""
    if count() == 1:
        return [value]
    values: list[T | None] = [None] * count()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def stack(tensor: Tensor) -> Tensor:
    """Return every process's tensor, all of one shape, stacked on a new first axis."""
    if count() == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(count())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def total(tensor: Tensor) -> Tensor:
    """Return the sum over the processes."""
    return stack(tensor).sum(dim=0)


def wait() -> None:
    """Wait until all processes have come to this point."""
    gather(None)
