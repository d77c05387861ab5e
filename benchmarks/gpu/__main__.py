"""Measure a machine with one GPU, or a CPU that stands in for it.

    python -m benchmarks.gpu --out gpu.json --seconds 300
    python -m benchmarks.gpu --parts looks,training --wheels .whl
    python -m benchmarks.gpu --device cpu --quick --out quick.json

It needs this repository and a Python with torch; no network. Each part writes its result as it
ends. If the command is repeated, parts that have a result are skipped, unless --parts names them.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clipag_plugins.files import write_json

from .. import RESULTS, made
from . import wheels
from .meter import Meter

Figures = dict[str, Any]
# In the order of their importance.
PARTS = (
    "limit", "looks", "pictures", "gradients", "renderer", "canvases", "half", "training",
    "steps", "strokes", "command", "compiled",
)  # fmt: skip


def part_of(name: str, results: Figures) -> Callable[[Meter], Figures]:
    """Return the function of a part.

    A module is imported when its part runs: if a library is missing, other parts still run.
    """
    if name in ("pictures", "gradients", "renderer", "canvases", "half"):
        from . import equality

        return getattr(equality, name)  # type: ignore[no-any-return]
    if name == "training":
        from .training import training

        return training
    from . import speed

    if name == "looks":
        rates = results.get("limit", {}).get("TFLOP/s", {})
        return lambda meter: speed.looks(meter, rates)
    return getattr(speed, name)  # type: ignore[no-any-return]


def run_part(name: str, results: Figures, meter: Meter) -> Figures:
    """Run a part; return its figures, or its error."""
    began = time.perf_counter()
    try:
        figures = part_of(name, results)(meter)
    except Exception as error:
        figures = {
            "error": f"{type(error).__name__}: {error}"[:2000],
            "traceback": traceback.format_exc()[-6000:],
        }
    return {"took, s": round(time.perf_counter() - began, 1), **figures}


def description(meter: Meter, failures: dict[str, str], commit: str | None) -> Figures:
    """Return what the results were measured on and with."""
    origin: Figures = made()
    if commit:
        origin["commit"] = commit
    name = torch.cuda.get_device_name(meter.device) if meter.is_cuda else "CPU"
    return {
        "made": origin,
        "device": name,
        "quick": meter.quick,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version() if meter.is_cuda else None,
        "libraries": wheels.versions(),
        "wheels that failed": failures,
    }


def earlier(path: Path, about: Figures) -> Figures:
    """Return the parts of a file of results if the same machine and torch made them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        results = json.loads(path.read_text(encoding="utf-8"))
        same = all(results[key] == about[key] for key in ("device", "quick"))
        if same and results["made"]["torch"] == about["made"]["torch"]:
            return dict(results["parts"])
    return {}


def main() -> int:
    """Run the parts; return 1 if one of them failed."""
    options = read_options()
    with tempfile.TemporaryDirectory() as folder:
        failures = wheels.install(options.wheels, Path(folder)) if options.wheels else {}
        return measure(options, failures)


def measure(options: argparse.Namespace, failures: dict[str, str]) -> int:
    """Run the parts that have no result yet; return 1 if one of them failed."""
    meter = Meter(torch.device(options.device), options.quick)
    about = description(meter, failures, options.commit)
    results = earlier(options.out, about)
    wanted = options.parts or [p for p in PARTS if p not in results or "error" in results[p]]
    began, skipped = time.perf_counter(), []
    for name in wanted:
        left = options.seconds - (time.perf_counter() - began)
        if left <= 0:
            skipped.append(name)
            continue
        print(f"{name} … ({left:.0f} s left)", file=sys.stderr, flush=True)
        results[name] = run_part(name, results, meter)
        in_order = {p: results[p] for p in PARTS if p in results}
        write_json(options.out, {**about, "skipped": skipped, "parts": in_order})
        print(json.dumps({name: results[name]}, indent=1), flush=True)
    in_order = {p: results[p] for p in PARTS if p in results}
    write_json(options.out, {**about, "skipped": skipped, "parts": in_order})
    failed = [name for name in wanted if "error" in results.get(name, {})]
    took = time.perf_counter() - began
    print(f"{took:.0f} s. Skipped: {skipped}. Failed: {failed}. {options.out}", file=sys.stderr)
    return 1 if failed else 0


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", type=lambda text: text.split(","), help=f"of {','.join(PARTS)} (default: all)")
    add("--device", default="cuda", help="default: %(default)s")
    add("--quick", action="store_true", help="small sizes, as the tests use")
    add("--seconds", type=float, default=360.0, help="after which no part is begun (360)")
    add("--wheels", type=Path, metavar="DIR", help="where missing libraries come from")
    add("--out", type=Path, default=RESULTS / "gpu.json", help="default: %(default)s")
    add("--commit", help="of the code, where there is no clone")
    options = parser.parse_args()
    if unknown := set(options.parts or ()) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {PARTS}")
    return options


if __name__ == "__main__":
    sys.exit(main())
