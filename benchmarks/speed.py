"""How long a picture takes, and how much memory.

    python -m benchmarks.speed

Times `clipag generate "a red apple"` as a whole process, cold, and one `generate()` in a
process that has the model loaded, beside the arithmetic alone: the same number of tower
passes, without views or updates, as the named peer of the same run.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time

import torch

from clipag_plugins.model import load_clipag
from clipag_plugins.sampler import generate, settings_for


def main() -> None:
    """Print the figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "clipag_plugins",
            "generate",
            "a red apple",
            "--out",
            folder,
        ]
        subprocess.run(command, check=True, capture_output=True)
        cold = time.perf_counter() - began
    model = load_clipag()
    generate("a red apple", model, steps=2, progress=False)
    began = time.perf_counter()
    generate("a red apple", model, progress=False)
    warm = time.perf_counter() - began

    settings = settings_for(model)
    count = settings.views.global_views + settings.views.patch_views
    side = model.visual.native_size
    images = torch.rand(count, 3, side, side, requires_grad=True)
    began = time.perf_counter()
    for _ in range(settings.steps):
        torch.autograd.grad(model.encode_image(images).sum(), images)
    tower = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    figures = {
        "cold process, s": round(cold, 1),
        "generate() warm, s": round(warm, 1),
        "tower passes alone, s": round(tower, 1),
        "warm / tower": round(warm / tower, 2),
        "peak memory of the process, MB": round(memory),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
