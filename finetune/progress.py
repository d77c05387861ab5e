"""How far a run has come: what its checkpoints hold besides weights."""

from dataclasses import dataclass, field
from typing import Any

from clipag_plugins.finetune import processes
from clipag_plugins.finetune.data import Data


@dataclass
class Progress:
    """What a checkpoint holds besides weights.

    Attributes:
        positions: where the streams of data stand, as plain values, by their numbers.
        seconds: time that the updates took.
        precision: what the run computes in; "" before that is measured.
    """

    positions: dict[int, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    precision: str = ""

    @property
    def skipped(self) -> int:
        """Samples that could not be read, of all processes."""
        return sum(position["skipped"] for position in self.positions.values())

    def gather_positions(self, reader: Data) -> None:
        """Take the positions of all processes' streams."""
        for positions in processes.gather(reader.state_dict()):
            self.positions |= positions

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take plain values."""
        vars(self).update(state)
