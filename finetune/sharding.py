"""How a run's processes hold the tower: each a copy (`Replicated`), or each a part (`Sharded`).

Sharding is PyTorch's FSDP2 (Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data
Parallel", 2023): each process stores a part of the weights, gradients, moments and average, and
a block's weights are gathered while the block computes. A checkpoint holds everything in one
piece in either form, so that a run may be resumed in the other, or on another number of processes.
"""

import copy
from collections.abc import Mapping, Sequence
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
from torch.nn.parallel import DistributedDataParallel

from clipag_plugins.errors import ClipagError
from clipag_plugins.finetune import checkpoint, processes

GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)  # to the first process alone
WHOLE = StateDictOptions(full_state_dict=True)


def is_block(module: nn.Module) -> bool:
    """Return whether a module is one of a tower's repeated blocks."""
    return type(module).__name__.endswith(("Block", "Bottleneck"))


def shard(tower: nn.Module, device: torch.device) -> None:
    """Leave each process its part of a tower's weights, in place.

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
            # Reshard the root too: between two passes `parameters()` must be the parts.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)


class Replicated:
    """Every process has a copy of the tower. One process is the simplest case."""

    def distribute(self, towers: Sequence[nn.Module], device: torch.device) -> None:
        """Leave the towers as they are."""

    def called_tower(self, tower: nn.Module) -> nn.Module:
        """Return the tower as an update calls it: DDP averages the processes' gradients."""
        return DistributedDataParallel(tower) if processes.count() > 1 else tower

    def weights(self, module: nn.Module) -> checkpoint.Part:
        """Return a module as a part of a checkpoint."""
        return module

    def moments(self, tower: nn.Module, optimizer: torch.optim.Optimizer) -> checkpoint.Part:
        """Return the tower's optimiser as a part of a checkpoint."""
        return optimizer

    def whole(self, tower: nn.Module, like: nn.Module) -> nn.Module:
        """Return a tower in one piece, on the first process."""
        return tower

    def clip(self, tower: nn.Module, largest: float) -> float:
        """Scale the gradient to a norm of at most `largest`; return its norm before."""
        return float(nn.utils.clip_grad_norm_(tower.parameters(), largest))


class Sharded(Replicated):
    """Every process has a part of the tower. All processes must make every call together."""

    def distribute(self, towers: Sequence[nn.Module], device: torch.device) -> None:
        """Leave each process its part of the towers, in place."""
        for tower in towers:
            shard(tower, device)

    def called_tower(self, tower: nn.Module) -> nn.Module:
        """Return the tower itself: FSDP2 works inside it."""
        return tower

    def weights(self, module: nn.Module) -> checkpoint.Part:
        """Return a module as a part of a checkpoint."""
        return _ShardedWeights(module)

    def moments(self, tower: nn.Module, optimizer: torch.optim.Optimizer) -> checkpoint.Part:
        """Return the tower's optimiser as a part of a checkpoint."""
        return _ShardedMoments(tower, optimizer)

    def whole(self, tower: nn.Module, like: nn.Module) -> nn.Module:
        """Return, on the first process, a copy of `like` with a tower's weights; else `like`."""
        device = next(tower.parameters()).device
        state = get_model_state_dict(tower, options=GATHERED)
        if processes.rank():
            return like
        copied = copy.deepcopy(like).to(device)
        copied.load_state_dict(state)
        return copied

    def clip(self, tower: nn.Module, largest: float) -> float:
        """Scale the gradient to a norm of at most `largest`; return its norm before."""
        norm: Any = nn.utils.clip_grad_norm_(tower.parameters(), largest)
        return float(norm.full_tensor())


class _ShardedWeights:
    """A sharded tower as a part of a checkpoint."""

    def __init__(self, tower: nn.Module):
        self._tower = tower

    def state_dict(self) -> dict[str, Any]:
        """Return all weights on the first process, and nothing on the others."""
        return get_model_state_dict(self._tower, options=GATHERED)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load this process's part of all weights."""
        set_model_state_dict(self._tower, state, options=WHOLE)


class _ShardedMoments:
    """The optimiser of a sharded tower as a part of a checkpoint."""

    def __init__(self, tower: nn.Module, optimizer: torch.optim.Optimizer):
        self._tower, self._optimizer = tower, optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return, on the first process, what the optimiser of a whole tower would."""
        state = get_optimizer_state_dict(self._tower, self._optimizer, options=GATHERED)
        numbers = {name: number for number, name in enumerate(self._names())}
        return _renamed(state, numbers) if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load this process's part of the moments."""
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
