"""Save and restore a training run: a kill costs the updates since the last checkpoint."""

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import processes
from clipag_plugins.untrusted import READER_ERRORS

# What reading bytes raises that are no whole checkpoint. OSError is not among them: the file may be
# whole, and only out of reach.
DAMAGED = tuple({*READER_ERRORS} - {OSError, MemoryError})


class Part(Protocol):
    """What a checkpoint can hold: a module, an optimiser, or anything with the same methods."""

    def state_dict(self) -> Any:
        """Return its state as plain values and tensors."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take such a state."""


class Recipe:
    """The settings that a resumed run must share with its checkpoint, of which it is a part.

    Args:
        settings: plain values.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self._settings = json.dumps(settings, sort_keys=True)

    def state_dict(self) -> dict[str, str]:
        """Return them as JSON."""
        return {"settings": self._settings}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Raise ClipagError unless the checkpoint was written with the same settings."""
        current, saved = json.loads(self._settings), json.loads(state["settings"])
        if changed := [key for key in current if current[key] != saved.get(key)]:
            raise ClipagError(
                f"The run in this folder was begun with another {changed[0]}: set it back, or "
                "start in another folder."
            )


class Averaged(nn.Module):
    """Exponential moving average of a tower's weights.

    Args:
        tower: what is averaged.
        decay: of the average; 0 follows the tower.
    """

    def __init__(self, tower: nn.Module, decay: float):
        super().__init__()
        self.tower = copy.deepcopy(tower).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, tower: nn.Module, step: int) -> None:
        """Move towards the tower's current weights, faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, current in zip(self.tower.parameters(), tower.parameters(), strict=True):
            mean.lerp_(current, 1 - decay)


def save(path: Path, step: int, parts: Mapping[str, Any]) -> None:
    """Write the step and the state of every part: model, optimiser, average and so on.

    Every process of a run calls it, since parts may be sharded; the first writes.
    """
    state = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
    if processes.rank() == 0:
        with write_beside(path) as temporary:
            torch.save(state, temporary)


def restore(path: Path, parts: Mapping[str, Any]) -> int:
    """Load every part from `path` and return the step to resume from: 0 if there is no file."""
    return _restore_parts(parts, _read(path)) if path.exists() else 0


def save_in(folder: Path, step: int, parts: Mapping[str, Any], keep: int) -> None:
    """Write a checkpoint to a folder, then remove all but the last `keep`."""
    save(folder / _name(step), step, parts)
    if processes.rank() == 0:
        for path in _checkpoints(folder)[:-keep]:
            path.unlink()


def restore_last(folder: Path, parts: Mapping[str, Any]) -> int:
    """Load the last undamaged checkpoint of a folder; return its step, or 0 if there is none.

    Every process of a run calls it. The first chooses, and renames damaged ones; the others load
    the one it has chosen.

    Raises:
        ClipagError: a process cannot read the chosen checkpoint, or it belongs to another run.
    """
    state: dict[str, Any] | None = None
    if processes.rank() == 0:
        for path in reversed(_checkpoints(folder)):
            try:
                state = _read(path)
                break
            except DAMAGED as error:
                # Under its old name it would count as the newest, and a good one would be pruned.
                renamed = path.replace(path.with_suffix(".damaged"))
                logging.getLogger(__name__).warning(
                    "%s is damaged (%s): it was renamed to %s, and the one before it is used.",
                    path, type(error).__name__, renamed.name,
                )  # fmt: skip
            except OSError as error:
                raise ClipagError(
                    f"{path} cannot be read ({error}): check the disk, or remove the file."
                ) from error
    (step, *_) = processes.gather(None if state is None else int(state["step"]))
    if step is None:
        return 0
    if state is None:
        path = folder / _name(step)
        try:
            state = _read(path)
        except (OSError, *DAMAGED) as error:
            raise ClipagError(
                f"Process {processes.rank()} cannot read {path}, which process 0 resumes from "
                f"({type(error).__name__}): all processes need the same `out` folder."
            ) from error
    return _restore_parts(parts, state)


def tidy(folder: Path) -> None:
    """Remove the temporary files of a write that was killed."""
    for path in folder.glob(".clipag-*"):
        shutil.rmtree(path, ignore_errors=True)


def progress(start: int, steps: int, name: str) -> Iterator[int]:
    """Yield the remaining steps, and show them in a progress bar."""
    yield from tqdm(range(start, steps), initial=start, total=steps, desc=name, unit="step")


def _read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or type(state.get("step")) is not int or state["step"] < 0:
        raise ValueError("it holds no step")
    return state


def _restore_parts(parts: Mapping[str, Any], state: dict[str, Any]) -> int:
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except DAMAGED as error:
            raise ClipagError(
                f"The {name} of the checkpoint of step {state['step']} is not that of this run "
                f"({type(error).__name__}): start in another folder, or remove the checkpoint."
            ) from error
    return int(state["step"])


def _name(step: int) -> str:
    return f"{step:08d}.pt"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.pt"))
