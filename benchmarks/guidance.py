"""How fast a guide's gradient is, next to other implementations: `clipag bench`, with its record.

    python -m benchmarks.guidance
    python -m benchmarks.guidance --models ViT-B-32 --views 8 32

clip-anytorch takes part if it is installed (`pip install '.[test]'`).
"""

import argparse

import torch

from clipag_plugins import bench
from clipag_plugins.defaults import BENCH_MODELS, BENCH_ROUNDS, BENCH_VIEWS

from . import RESULTS, add_origin

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=BENCH_MODELS)
    parser.add_argument("--views", type=int, nargs="+", default=BENCH_VIEWS)
    parser.add_argument("--rounds", type=int, default=BENCH_ROUNDS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    path = RESULTS / "guidance.json"
    bench.main(options.models, options.views, options.rounds, device, path)
    add_origin("guidance")
