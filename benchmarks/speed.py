"""How long a picture takes from a cold start, and how much memory.

    python -m benchmarks.speed

Times `clipag generate "a red apple"` as a whole process, and beside it, in the same run, a process
that only imports torch. `clipag bench` times what follows the start.
"""

import resource
import subprocess
import sys
import tempfile
import time

from . import keep


def seconds(*command: str) -> float:
    """Return how long a Python process takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - began


def peak() -> float:
    """Return the peak memory of all commands so far, in MB."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Time the processes."""
    torch = seconds("-c", "import torch")
    with tempfile.TemporaryDirectory() as folder:
        draw = ("-m", "clipag_plugins", "generate", "a red apple", "--out", folder)
        whole = seconds(*draw)
        memory = peak()
        # Chunks bound the memory: eight pictures with 64 views each should need no more than one.
        many = (*draw, "--views", "64", "--steps", "2", "--count")
        seconds(*many, "1")
        one = peak()
        seconds(*many, "8")
        eight = peak()
    figures = {
        "import torch, s": round(torch, 1),
        "clipag generate, s": round(whole, 1),
        "peak memory, MB": round(memory),
        "peak memory with 64 views, MB": round(one),
        "peak memory with 8 x 64 views, MB": round(eight),
    }
    keep("speed", figures)


if __name__ == "__main__":
    main()
