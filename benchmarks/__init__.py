"""Benchmarks: each prints its figures and keeps them in `results/`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipag_plugins.files import write_beside, write_json

RESULTS = Path(__file__).parent / "results"
SHARES = ("R-Prec", "top 5")  # shown in per cent


def keep(name: str, figures: Mapping[str, object]) -> None:
    """Print figures as JSON, and keep them as {name}.json."""
    print(json.dumps(figures, indent=1))
    write_json(RESULTS / f"{name}.json", figures)


def keep_table(
    name: str, settings: Mapping[str, object], rows: Sequence[Mapping[str, object]]
) -> None:
    """Keep rows, of which all have the same columns, as {name}.json and as the table {name}.md."""
    write_json(RESULTS / f"{name}.json", {**settings, "rows": rows})

    def cell(column: str, value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.0%}" if column in SHARES else f"{value:.3f}"

    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        lines.append(f"| {' | '.join(cell(*pair) for pair in row.items())} |")
    with write_beside(RESULTS / f"{name}.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
