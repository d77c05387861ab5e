"""How long a picture takes from a cold start, and a look, beside the peers.

    python -m benchmarks.speed looks
    python -m benchmarks.speed avx2
    python -m benchmarks.speed start
    python -m benchmarks.speed same

`looks` times ViT-B/32's gradients as `clipag bench` does, but in CPU seconds of one thread, because
other work on a machine then blurs the ratios least. The implementations take turns. `avx2` does the
same in float32 and lets the libraries use AVX2 at most, as on a processor without AVX-512. `start`
times `clipag generate "a red apple"` as a whole process, in CPU seconds too, and beside it, in the
same run, a process that only imports torch. `same` draws a picture in 20 processes from one seed.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from clipag_plugins import bench, precision

from . import RESULTS, keep

MODEL = "ViT-B-32"
ROUNDS = {1: 7, 8: 3, 32: 3}  # views: rounds
SIDE = 2048  # of the matrices whose product sets the limit
PROCESSES = 20
ROUNDS_OF_AVX2 = {1: 5, 8: 3}
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
APPLE = ("-m", "clipag_plugins", "generate", "a red apple")
MINI = (*APPLE, "--model", "clipag-mini")
CPU = torch.device("cpu")


def spent(*command: str) -> tuple[float, float]:
    """Return the CPU seconds and the peak memory in MB of a Python process of one thread.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, *command], stdout=quiet, stderr=quiet, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def seconds(*command: str) -> float:
    """Return the CPU seconds that a Python process of one thread takes."""
    return spent(*command)[0]


def start() -> dict[str, object]:
    """Time cold starts."""
    importing = statistics.median(seconds("-c", "import torch") for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        out = ("--out", folder)
        one_try = ("--tries", "1")
        first = statistics.median(seconds(*APPLE, "--steps", "1", *one_try, *out) for _ in range(3))
        mini = seconds(*MINI, *out)
        one_ascent = seconds(*APPLE, *one_try, *out)
        whole, memory = spent(*APPLE, *out)
        # Chunks bound the memory: eight pictures with 64 views each should need no more than one.
        many = (*MINI, *out, "--views", "64", "--steps", "2", "--count")
        one, eight = (spent(*many, count)[1] for count in ("1", "8"))
    return {
        "import torch, CPU s": round(importing, 1),
        "one step of one try, CPU s": round(first, 1),
        "--tries 1, CPU s": round(one_ascent, 1),
        "default settings, CPU s": round(whole, 1),
        "--model clipag-mini, CPU s": round(mini, 1),
        "peak memory, MB": round(memory),
        "peak memory of clipag-mini with 64 views, MB": round(one),
        "peak memory of clipag-mini with 8 x 64 views, MB": round(eight),
    }


def same() -> dict[str, object]:
    """Count the different pictures of one seed in many processes."""
    pictures = set()
    for _ in range(PROCESSES):
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder, "apple.png")
            seconds(*MINI, "--seed", "3", "--steps", "4", "--tries", "1", "--out", str(picture))
            pictures.add(hashlib.sha256(picture.read_bytes()).hexdigest())
    return {"processes": PROCESSES, "pictures": len(pictures)}


Way = tuple[str, str]  # implementation, precision


def cpu_seconds(compute: Callable[[], object]) -> float:
    """Return the CPU seconds that a function takes."""
    began = time.process_time()
    compute()
    return time.process_time() - began


def avx2() -> dict[str, Any]:
    """Do what `looks` does in a process that is kept from newer instructions than AVX2."""
    measure = f"print(speed.json.dumps(speed.looks('float32', {ROUNDS_OF_AVX2})))"
    command = [sys.executable, "-c", f"from benchmarks import speed; {measure}"]
    environment = {**os.environ, **AVX2}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return figures


def looks(auto: str | None = None, counts: Mapping[int, int] = ROUNDS) -> dict[str, object]:
    """Time this package and its peers in float32, and in the precision that auto chooses.

    Args:
        auto: another precision instead of that.
        counts: how many rounds each number of views is timed.
    """
    torch.set_num_threads(1)
    _, towers = bench.implementations(MODEL, CPU)
    auto = auto or str(precision.fastest(CPU)).removeprefix("torch.")
    a_view = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with FlopCounterMode(display=False) as counter:
        bench.make_look(towers["clipag"], a_view, torch.float32)()
    gflop = counter.get_total_flops() / 1e9
    results = []
    for count, rounds in counts.items():
        ways = {
            (name, p): bench.make_look(tower, a_view.repeat(count, 1, 1, 1), precision.DTYPES[p])
            for name, tower in towers.items()
            for p in dict.fromkeys(("float32", auto))
        }
        square = torch.ones(SIDE, SIDE, dtype=precision.DTYPES[auto])
        times: dict[Way, list[float]] = {way: [] for way in ways}
        products = []
        for _ in range(rounds):
            products.append(cpu_seconds(partial(torch.mm, square, square)))
            for way, look in ways.items():
                times[way].append(cpu_seconds(look))
                print(count, *way, f"{times[way][-1]:.3f}", file=sys.stderr)
        medians = {way: statistics.median(values) for way, values in times.items()}
        limit = count * gflop / (2 * SIDE**3 / 1e9 / statistics.median(products))
        share = round(limit / medians["clipag", auto], 2)
        results.append({"views": count, "share of the limit": share, **compared(medians, auto)})
    return {"model": MODEL, "precision": auto, "looks": results}


def compared(medians: Mapping[Way, float], auto: str) -> dict[str, object]:
    """Return the ratios of this package's CPU seconds to the fastest peer's."""
    peers = {way: value for way, value in medians.items() if way[0] != "clipag"}
    best = min(peers, key=lambda way: peers[way])
    best_in_float32 = min(value for (_, p), value in peers.items() if p == "float32")
    return {
        "ratio": round(medians["clipag", auto] / peers[best], 2),
        "fastest peer": ", ".join(best),
        "ratio in float32": round(medians["clipag", "float32"] / best_in_float32, 2),
        "CPU s": {", ".join(way): round(value, 3) for way, value in medians.items()},
    }


def main() -> None:
    """Measure what the arguments name, and add the figures to those of other runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="+", choices=("looks", "avx2", "start", "same"))
    measures = {"looks": looks, "avx2": avx2, "start": start, "same": same}
    path = RESULTS / "speed.json"
    for name in parser.parse_args().what:
        figures = {"load": os.getloadavg()[0], **measures[name]()}
        others: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        keep("speed", {**others, name: figures})


if __name__ == "__main__":
    main()
