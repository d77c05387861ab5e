"""A tower in shares: each process keeps a part of the weights, gradients, moments and average.

PyTorch's own engine (FSDP2; Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded
Data Parallel", 2023) puts a block's weights together when the block computes. A checkpoint
holds everything in one piece, so that a run may go on with other shares, or without.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh

from clipag_plugins.errors import ClipagError
from clipag_plugins.finetune import processes

GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on the first process alone
WHOLE = StateDictOptions(full_state_dict=True)


def is_block(module: nn.Module) -> bool:
    """Say whether a part of a tower is one of its repeated blocks."""
    return type(module).__name__.endswith(("Block", "Bottleneck"))


def shard(tower: nn.Module, device: torch.device) -> None:
    """Leave each process its share of a tower's weights, in place; what they are now is kept.

    Raises:
        ClipagError: this torch has no FSDP2.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ClipagError(
            f"shard needs torch 2.6 or newer, and this is {torch.__version__}: update it, or set "
            "shard to false."
        ) from error
    mesh = init_device_mesh(device.type, (processes.count(),))
    tower.to(memory_format=torch.contiguous_format)  # FSDP takes no other
    for part in reversed([*tower.modules()]):  # the innermost first, the tower last
        if is_block(part) or part is tower:
            # The whole tower's own weights too: `parameters()` are shares between two passes.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)


def whole(tower: nn.Module, like: nn.Module) -> nn.Module:
    """Return a sharded tower in one piece: on the first process, a copy of `like` filled.

    All processes must call it; the others get `like` itself.
    """
    device = next(tower.parameters()).device
    state = get_model_state_dict(tower, options=GATHERED)
    if processes.rank():
        return like
    filled = copy.deepcopy(like).to(device)
    filled.load_state_dict(state)
    return filled


class Weights:
    """A sharded tower as a part of a checkpoint. All processes must save and load it."""

    def __init__(self, tower: nn.Module):
        self._tower = tower

    def state_dict(self) -> dict[str, Any]:
        """Return all weights on the first process, and nothing on the others."""
        return get_model_state_dict(self._tower, options=GATHERED)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this process' shares of all weights."""
        set_model_state_dict(self._tower, state, options=WHOLE)


class Moments:
    """The optimiser of a sharded tower, likewise."""

    def __init__(self, tower: nn.Module, optimizer: torch.optim.Optimizer):
        self._tower, self._optimizer = tower, optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return what the optimiser of a whole tower would, on the first process."""
        state = get_optimizer_state_dict(self._tower, self._optimizer, options=GATHERED)
        numbers = {name: number for number, name in enumerate(self._names())}
        return _renamed(state, numbers) if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this process' shares of it."""
        named = _renamed(state, dict(enumerate(self._names())))
        set_optimizer_state_dict(self._tower, self._optimizer, named, options=WHOLE)

    def _names(self) -> list[str]:
        """Return the weights' names in the order in which an optimiser numbers them."""
        state: Any = get_optimizer_state_dict(self._tower, self._optimizer)
        return [name for group in state["param_groups"] for name in group["params"]]


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "state": {names[key]: value for key, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[key] for key in group["params"]]}
            for group in state["param_groups"]
        ],
    }
