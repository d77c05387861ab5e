"""Share work between the processes that torchrun starts."""

import os
from datetime import timedelta


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank under torchrun and the number of processes; else (0, 1)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Return whether this process reports the results: rank 0, or the only one."""
    return rank_and_world_size()[0] == 0


def wait_for_all() -> None:
    """Wait under torchrun until every process has called this."""
    if rank_and_world_size()[1] == 1:
        return
    from torch import distributed

    if not distributed.is_initialized():
        # One process may draw for hours longer than another.
        distributed.init_process_group("gloo", timeout=timedelta(days=7))
    distributed.barrier()
