"""Benchmarks: each one prints its figures and keeps them in `results/` with their origin."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

from clipag_plugins import precision
from clipag_plugins.evaluation.report import Report
from clipag_plugins.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "figures"


def made() -> dict[str, str]:
    """Return the commit, machine, torch version, precision and date of a result.

    A commit ends in "+" if the code differs from it; the results and documents may.
    """
    code = (".", ":!benchmarks/results", ":!docs", ":!*.md")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *code)
    fastest = str(precision.fastest(torch.device("cpu"))).removeprefix("torch.")
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if changed else ""),
        "machine": machine(),
        "torch": torch.__version__,
        "precision": f"auto chooses {fastest} on the CPU",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def machine() -> str:
    """Return the processor, the number of usable cores, and the GPU if there is one."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {cores} cores{gpu}"


def _git(*arguments: str) -> str:
    """Return what git prints; nothing outside a clone, or where there is no git."""
    if shutil.which("git") is None:
        return ""
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip()


def keep(name: str, figures: Mapping[str, object]) -> None:
    """Print figures as JSON, and keep them as {name}.json with their origin."""
    print(json.dumps(figures, indent=1))
    # A result that is completed by several runs holds the "made" of the last one.
    others = {key: value for key, value in figures.items() if key != "made"}
    write_json(RESULTS / f"{name}.json", {"made": made(), **others})


def add_origin(name: str) -> None:
    """Add the origin to {name}.json, which the package itself has written."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"made": made(), **json.loads(path.read_text(encoding="utf-8"))})


def keep_report(name: str, report: Report) -> None:
    """Print a report, and keep it as {name}.json."""
    print(report.table())
    write_json(RESULTS / f"{name}.json", {"made": made(), **asdict(report)})


def keep_table(
    name: str, settings: Mapping[str, object], rows: Sequence[Mapping[str, object]]
) -> None:
    """Keep the rows of a table as {name}.json; `python -m benchmarks.report` shows it.

    Args:
        name: of the file.
        settings: what all rows have in common.
        rows: the values of each row under the titles of the columns, which are the same in all.
    """
    write_json(RESULTS / f"{name}.json", {"made": made(), **settings, "rows": rows})
