"""clipag bench: how fast the guide is."""

import argparse
from pathlib import Path

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
    """Describe `clipag bench`."""
    bench = command(
        commands, "bench", "time the guide beside open_clip and clip-anytorch", EXAMPLES
    )
    bench.set_defaults(run=_run)
    add = bench.add_argument
    add("--models", nargs="+", metavar="NAME", help="embedded, or an open_clip architecture")
    add("--views", type=int, nargs="+", metavar="N", help="views of one look (default: 1 8 32 64)")
    add("--rounds", type=int, default=3, help="of which the median counts (default: %(default)s)")
    add("--device", help=DEVICE_HELP)
    add("--out", type=Path, metavar="FILE.json", help="keep the figures")


def _run(options: argparse.Namespace) -> int:
    if options.out is not None:
        require_writable_folder(options.out.parent)
    for option, numbers in (("--rounds", [options.rounds]), ("--views", options.views or [])):
        if min(numbers, default=1) < 1:
            raise ClipagError(f"{option} is {min(numbers)}: it must be at least 1.")
    from .. import bench

    bench.main(
        options.models or bench.MODELS,
        options.views or bench.VIEWS,
        options.rounds,
        choose_device(options.device),
        options.out,
    )
    return 0
