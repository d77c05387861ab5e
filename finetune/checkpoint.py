"""Save and restore a training run, so that a kill costs minutes and never the run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from clipag_plugins.files import write_beside


def save(path: Path, step: int, parts: Mapping[str, Any]) -> None:
    """Write the step and the state of every part (model, optimiser, schedule, EMA)."""
    with write_beside(path) as temporary:
        torch.save({"step": step, **{k: part.state_dict() for k, part in parts.items()}}, temporary)


def restore(path: Path, parts: Mapping[str, Any]) -> int:
    """Load every part from `path` and return the step to go on from: 0 when there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def progress(start: int, steps: int, name: str) -> Iterator[int]:
    """Count the remaining steps behind a progress bar."""
    yield from tqdm(range(start, steps), initial=start, total=steps, desc=name, unit="step")
