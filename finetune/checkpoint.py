"""Save and restore a training run, so that a kill costs minutes and never the run."""

import copy
import json
import logging
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import processes

# What torch.load raises for bytes that are no whole checkpoint. A system's error is none of them.
DAMAGED = (EOFError, LookupError, RuntimeError, ValueError, pickle.UnpicklingError)


class Recipe:
    """The settings that make a run that run; a part of its checkpoints, and the first.

    Args:
        settings: plain values.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self._settings = json.dumps(settings, sort_keys=True)

    def state_dict(self) -> dict[str, str]:
        """Return them as JSON."""
        return {"settings": self._settings}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Raise ClipagError unless these are the settings of the run that is taken up again."""
        ours, theirs = json.loads(self._settings), json.loads(state["settings"])
        if changed := [key for key in ours if ours[key] != theirs.get(key)]:
            raise ClipagError(
                f"The run there was begun with another {changed[0]}: set it back, or start in "
                "another folder."
            )


class Averaged(nn.Module):
    """Exponential moving average of a tower's weights."""

    def __init__(self, tower: nn.Module, decay: float):
        super().__init__()
        self.tower = copy.deepcopy(tower).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, tower: nn.Module, step: int) -> None:
        """Move towards the tower's present weights; faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, now in zip(self.tower.parameters(), tower.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)


def save(path: Path, step: int, parts: Mapping[str, Any]) -> None:
    """Write the step and the state of every part (model, optimiser, schedule, EMA).

    Every process of a run calls it, as parts may be spread over them; the first writes.
    """
    state = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
    if processes.rank() == 0:
        with write_beside(path) as temporary:
            torch.save(state, temporary)


def restore(path: Path, parts: Mapping[str, Any]) -> int:
    """Load every part from `path` and return the step to go on from: 0 when there is none."""
    return _fill(parts, _read(path)) if path.exists() else 0


def save_in(folder: Path, step: int, parts: Mapping[str, Any], keep: int) -> None:
    """Write one more checkpoint to a folder, then remove all but the last `keep`."""
    save(folder / _name(step), step, parts)
    if processes.rank() == 0:
        for path in _checkpoints(folder)[:-keep]:
            path.unlink()


def restore_last(folder: Path, parts: Mapping[str, Any]) -> int:
    """Load the last checkpoint of a folder that is whole; return its step, or 0.

    Every process of a run calls it. The first chooses, and renames what it finds damaged; the
    others load the same one.

    Raises:
        ClipagError: a process cannot read what the first has chosen.
    """
    state: dict[str, Any] | None = None
    if processes.rank() == 0:
        for path in reversed(_checkpoints(folder)):
            try:
                state = _read(path)
                break
            except DAMAGED as error:
                # Left in place, it would count as the newest, and the next be pruned for it.
                kept = path.replace(path.with_suffix(".damaged"))
                logging.getLogger(__name__).warning(
                    "%s is damaged (%r): it is %s now, and the one before it is taken.",
                    path, error, kept.name,
                )  # fmt: skip
    (step, *_) = processes.gather(None if state is None else int(state["step"]))
    if step is None:
        return 0
    if state is None:
        path = folder / _name(step)
        try:
            state = _read(path)
        except (OSError, *DAMAGED) as error:
            raise ClipagError(
                f"Process {processes.rank()} cannot read {path}, which process 0 goes on from "
                f"({type(error).__name__}): all processes need the same --out folder."
            ) from error
    return _fill(parts, state)


def tidy(folder: Path) -> None:
    """Remove what a kill in the middle of a write has left."""
    for path in folder.glob(".clipag-*"):
        shutil.rmtree(path, ignore_errors=True)


def progress(start: int, steps: int, name: str) -> Iterator[int]:
    """Count the remaining steps behind a progress bar."""
    yield from tqdm(range(start, steps), initial=start, total=steps, desc=name, unit="step")


def _read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _fill(parts: Mapping[str, Any], state: dict[str, Any]) -> int:
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def _name(step: int) -> str:
    return f"{step:08d}.pt"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.pt"))
