"""Figures with confidence intervals, and tables of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import library
from ..files import write_beside, write_json

RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Row:
    """A figure of a table: its mean over `pictures`, and the bootstrap's 95 % interval."""

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
    """What was measured, a column for each set of pictures; and what was not, and why."""

    columns: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path, name: str) -> None:
        """Write {name}.json and the table {name}.md to a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", asdict(self))
        with write_beside(folder / f"{name}.md") as temporary:
            temporary.write_text(self.table() + "\n", encoding="utf-8")

    def table(self) -> str:
        """Return a Markdown table, a line for each metric and judge, and the notes below it."""
        found = {(r.metric, r.judge): "" for rows in self.columns.values() for r in rows}
        lines = [f"| metric | judge | {' | '.join(self.columns)} |"]
        lines.append("|---" * (2 + len(self.columns)) + "|")
        for metric, judge in found:
            cells = []
            for rows in self.columns.values():
                mine = [str(r) for r in rows if (r.metric, r.judge) == (metric, judge)]
                cells.append(mine[0] if mine else "–")
            lines.append(f"| {metric} | {judge} | {' | '.join(cells)} |")
        return "\n".join([*lines, *(f"\n*{note}*" for note in self.notes)])


def mean(metric: str, judge: str, values: Tensor) -> Row:
    """Return a mean with the bootstrap's percentile interval: none for a single value.

    Raises:
        ClipagError: scipy is not installed.
    """
    low = high = None
    if len(values) > 1:
        found = library("scipy.stats", "eval").bootstrap(
            (values.double().numpy(),),
            _mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            batch=50,
            rng=0,
        )
        low, high = map(float, found.confidence_interval)
    return Row(metric, judge, values.double().mean().item(), low, high, len(values))


def _mean(values: Any, axis: int) -> Any:
    return values.mean(axis=axis)


def compared(metric: str, judge: str, scores: Mapping[str, Tensor]) -> dict[str, list[Row]]:
    """Return the mean of each column's scores (N,), and how much above the first's it is.

    The scores are pairs, of one picture or text each, and so are their differences.
    """
    rows = {label: [mean(metric, judge, values)] for label, values in scores.items()}
    first, *others = scores
    for label in others:
        above = scores[label] - scores[first]
        rows[label].append(mean(f"{metric}, above {first}", judge, above))
    return rows
