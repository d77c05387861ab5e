"""Share work between the processes that torchrun starts."""

import os
from datetime import timedelta


def shard() -> tuple[int, int]:
    """Return the number of this process under torchrun, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_all() -> None:
    """Wait under torchrun until every process has come here."""
    if shard()[1] == 1:
        return
    from torch import distributed

    if not distributed.is_initialized():
        # One process may draw for hours longer than another.
        distributed.init_process_group("gloo", timeout=timedelta(days=7))
    distributed.barrier()
