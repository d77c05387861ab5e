"""`clipag finetune`: make your own CLIPAG."""

import argparse
import os
from pathlib import Path

from ..errors import INTERRUPTED, library
from ..files import require_writable_folder
from .options import DEVICE_HELP, Commands, choose_device, command

EXAMPLES = """\
examples:
  clipag finetune mini --set data.0.path=build/weights      two cores, this package's corpus
  clipag finetune my.toml --out runs/mine --set lr=1e-5 --set threat.eps=0.5
  torchrun --nproc-per-node 8 -m clipag_plugins.finetune clipag-vit-b-32 --out runs/vit-b-32

The same command continues a stopped run. The result, OUT/model, can be passed to --model.
"""


def add(commands: Commands) -> None:
    """Add `clipag finetune`."""
    finetune = command(commands, "finetune", "make a CLIP robust: your own CLIPAG", EXAMPLES)
    finetune.set_defaults(run=_run, option_names={"changes": "--set"})
    arg = finetune.add_argument
    arg("config", metavar="CONFIG", help="a .toml file, or a name: see docs/finetune.md")
    arg(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the config",
    )
    arg("--device", help=DEVICE_HELP)
    arg("--out", type=Path, help="folder of the run (default: the config's name)")


def _run(options: argparse.Namespace) -> int:
    configs = library("clipag_plugins.finetune.config", "finetune")
    train = library("clipag_plugins.finetune.train", "finetune")
    from ..finetune import processes

    config = configs.read(options.config, options.set)
    out = options.out or Path(Path(options.config).stem)
    require_writable_folder(out if out.exists() else out.parent)
    is_first_process = os.environ.get("RANK", "0") == "0"
    try:
        result = train.train(config, out, choose_device(options.device))
    except KeyboardInterrupt as interrupt:
        if is_first_process:
            print(f"clipag: interrupted; the same command continues from {out}.")
        # `train` passes the number of the signal that stopped it.
        return 128 + interrupt.args[0] if interrupt.args else INTERRUPTED
    processes.leave()
    if is_first_process:
        print(result)
    return 0
