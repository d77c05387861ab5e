"""Times and memory of what runs on a device."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Run = Callable[[], object]
WARM_UPS = 3
LONGEST = 4.0  # seconds that the rounds of one case may take


@dataclass(frozen=True)
class Meter:
    """Measures on a device.

    Attributes:
        device: where the parts compute.
        quick: whether the parts use small sizes and few rounds.
    """

    device: torch.device
    quick: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def once(self, run: Run) -> float:
        """Return how many seconds a run takes, until the device has done its work."""
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def medians(self, runs: Mapping[str, Run], rounds: int = 20) -> dict[str, float]:
        """Return the median seconds of each run, by name. The runs take turns."""
        if self.quick:
            return {name: self.once(run) for name, run in runs.items()}
        last: dict[str, float] = {}
        for _ in range(WARM_UPS):
            last = {name: self.once(run) for name, run in runs.items()}
        slowest = max(last.values(), default=0.0)
        rounds = max(3, min(rounds, int(LONGEST / max(slowest, 1e-6))))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(self.once(run))
        return {name: statistics.median(seconds) for name, seconds in times.items()}

    def peak_megabytes(self, run: Run) -> float | None:
        """Return the most memory of the GPU that tensors took during a run; None on a CPU."""
        if not self.is_cuda:
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.wait()
        return round(torch.cuda.max_memory_allocated(self.device) / 2**20)
