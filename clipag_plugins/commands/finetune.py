"""clipag finetune: make your own CLIPAG."""

import argparse
import os
from pathlib import Path

from ..errors import INTERRUPTED, library
from ..files import require_writable_folder
from .options import DEVICE_HELP, Commands, choose_device, command

EXAMPLES = """\
examples:
  clipag finetune mini --set data.0.path=build/weights      two cores, the package's own corpus
  clipag finetune my.toml --out runs/mine --set lr=1e-5 --set threat.eps=0.5
  torchrun --nproc-per-node 8 -m clipag_plugins.finetune clipag-vit-b-32 --out runs/vit-b-32

The same command goes on where a run was stopped. The result is in OUT/model, for --model.
"""


def add(commands: Commands) -> None:
    """Describe `clipag finetune`."""
    finetune = command(commands, "finetune", "make a CLIP robust: your own CLIPAG", EXAMPLES)
    finetune.set_defaults(run=_run)
    arg = finetune.add_argument
    arg("config", metavar="CONFIG", help="a .toml file, or a name: see docs/finetune.md")
    arg("--set", action="append", default=[], metavar="KEY=VALUE", help="instead of the config's")
    arg("--device", help=DEVICE_HELP)
    arg("--out", type=Path, help="folder of the run (default: the config's name)")


def _run(options: argparse.Namespace) -> int:
    configs = library("clipag_plugins.finetune.config", "finetune")
    train = library("clipag_plugins.finetune.train", "finetune")
    from ..finetune import processes

    config = configs.read(options.config, options.set)
    out = options.out or Path(Path(options.config).stem)
    require_writable_folder(out if out.exists() else out.parent)
    first = os.environ.get("RANK", "0") == "0"
    try:
        result = train.train(config, out, choose_device(options.device))
    except KeyboardInterrupt as stopped:
        if first:
            print(f"clipag: interrupted; the same command goes on from {out}.")
        return 128 + stopped.args[0] if stopped.args else INTERRUPTED
    processes.leave()
    if first:
        print(result)
    return 0
