"""`clipag bench`: time the guide."""

import argparse
from pathlib import Path

from ..defaults import BENCH_MODELS, BENCH_ROUNDS, BENCH_VIEWS
from ..errors import ClipagError
from ..files import require_writable_folder
from .options import DEVICE_HELP, Commands, choose_device, command

EXAMPLES = """\
examples:
  clipag bench                             four models, 1 to 64 views: half an hour on a CPU
  clipag bench --models ViT-B-32 --views 32 --device cuda
  clipag bench --models clipag-mini --out bench.json
"""


def add(commands: Commands) -> None:
    """Add `clipag bench`."""
    bench = command(
        commands, "bench", "time the guide next to open_clip and clip-anytorch", EXAMPLES
    )
    bench.set_defaults(run=_run)
    add = bench.add_argument
    add(
        "--models",
        nargs="+",
        default=BENCH_MODELS,
        metavar="NAME",
        help=f"embedded models, or architectures of open_clip (default: {' '.join(BENCH_MODELS)})",
    )
    add(
        "--views",
        type=int,
        nargs="+",
        default=BENCH_VIEWS,
        metavar="N",
        help=f"numbers of views (default: {' '.join(map(str, BENCH_VIEWS))})",
    )
    add(
        "--rounds",
        type=int,
        default=BENCH_ROUNDS,
        help="timings of which the median counts (default: %(default)s)",
    )
    add("--device", help=DEVICE_HELP)
    add("--out", type=Path, metavar="FILE.json", help="where to write the figures")


def _run(options: argparse.Namespace) -> int:
    if options.out is not None:
        require_writable_folder(options.out.parent)
    for option, number in (("rounds", options.rounds), ("views", min(options.views))):
        if number < 1:
            raise ClipagError(f"`{option}` is {number}: it must be at least 1.")
    from .. import bench

    device = choose_device(options.device)
    bench.main(options.models, options.views, options.rounds, device, options.out)
    return 0
