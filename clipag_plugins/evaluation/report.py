"""Measurements with confidence intervals, and tables of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ClipagError, library
from ..files import write_beside, write_json

RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Measurement:
    """A cell of a table.

    Attributes:
        metric: what was measured.
        judge: the model or the setting that it was measured with.
        value: the mean over the pictures, or a figure of the whole set such as FID.
        low: lower end of the 95 % bootstrap interval, or None without an interval.
        high: its upper end, or None.
        pictures: number of pictures.
    """

    metric: str
    judge: str
    value: float
    low: float | None
    high: float | None
    pictures: int

    def __str__(self) -> str:
        digits = 1 if abs(self.value) >= 10 else 2
        if self.low is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass
class Report:
    """A table: a column of measurements for each set of pictures or model.

    Attributes:
        columns: the measurements under the name of their set or model.
        notes: a sentence for everything that could not be read or measured.
    """

    columns: dict[str, list[Measurement]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def not_measured(self, what: str, error: ClipagError) -> None:
        """Add the note that something could not be measured."""
        self.notes.append(f"Not measured, {what}: {error}")

    def require_measurements(self) -> None:
        """Raise ClipagError if nothing could be measured."""
        if not any(self.columns.values()):
            raise ClipagError("Nothing could be measured. " + " ".join(self.notes))

    def write(self, folder: Path, name: str) -> None:
        """Write {name}.json and the table {name}.md to a folder, which is made if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", asdict(self))
        with write_beside(folder / f"{name}.md") as temporary:
            temporary.write_text(self.table() + "\n", encoding="utf-8")

    def table(self) -> str:
        """Return a Markdown table, a line for each metric and judge, followed by the notes."""
        lines = [f"| metric | judge | {' | '.join(self.columns)} |"]
        lines.append("|---" * (2 + len(self.columns)) + "|")
        # A dict keeps the order and drops repetitions.
        keys = dict.fromkeys(
            (cell.metric, cell.judge) for column in self.columns.values() for cell in column
        )
        for metric, judge in keys:
            cells = [
                next((str(c) for c in column if (c.metric, c.judge) == (metric, judge)), "–")
                for column in self.columns.values()
            ]
            lines.append(f"| {metric} | {judge} | {' | '.join(cells)} |")
        return "\n".join([*lines, *(f"\n*{note}*" for note in self.notes)])


def mean(metric: str, judge: str, values: Tensor) -> Measurement:
    """Return the mean of values (N,) with its percentile bootstrap interval; for N = 1, without.

    Raises:
        ClipagError: scipy is not installed.
    """
    low = high = None
    if len(values) > 1:
        result = library("scipy.stats", "eval").bootstrap(
            (values.double().numpy(),),
            _mean_over_axis,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            batch=50,
            rng=0,
        )
        low, high = map(float, result.confidence_interval)
    return Measurement(metric, judge, values.double().mean().item(), low, high, len(values))


def _mean_over_axis(values: Any, axis: int) -> Any:
    return values.mean(axis=axis)


def compared(metric: str, judge: str, scores: Mapping[str, Tensor]) -> dict[str, list[Measurement]]:
    """Return each column's mean score, and by how much it is above the first column's.

    Args:
        metric: what was measured.
        judge: the model or the setting that it was measured with.
        scores: the scores (N,) of each column. Those with the same index belong to one picture or
            text, so the interval of the difference is that of paired differences.
    """
    columns = {label: [mean(metric, judge, values)] for label, values in scores.items()}
    first, *others = scores
    for label in others:
        difference = scores[label] - scores[first]
        columns[label].append(mean(f"{metric}, above {first}", judge, difference))
    return columns
