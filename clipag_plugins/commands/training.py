"""What the commands share that train a small network behind a CLIP: data, folder, interruption."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import INTERRUPTED, ClipagError, library
from ..files import require_writable_folder
from .options import DEVICE_HELP, add_model, add_seed, choose_device

if TYPE_CHECKING:
    from ..base import ClipagModel
    from ..finetune.settings import Source

KINDS_OF_DATA = ("shards", "files", "table", "classes", "corpus")


def add_training_options(
    parser: argparse.ArgumentParser, out: str, *numbers: tuple[str, type, float, str]
) -> None:
    """Add the data, the folder of the run, and numbers: name, type, default, and what each is."""
    add = parser.add_argument
    add("data", metavar="DATA", help="pictures with captions: a table, shards, or a folder")
    add(
        "--data-kind",
        choices=KINDS_OF_DATA,
        help="how to read them: see docs/finetune.md (default: as the path looks)",
    )
    add_model(parser)
    add_seed(parser)
    for name, kind, default, what in numbers:
        add(f"--{name}", type=kind, default=default, help=f"{what} (default: %(default)s)")
    add("--device", help=DEVICE_HELP)
    add("--out", type=Path, default=Path(out), help="folder of the run (default: %(default)s)")


def train_in_folder(
    options: argparse.Namespace, train: "Callable[[Source, ClipagModel, bool], None]"
) -> int:
    """Train by `train`, which takes the data, the model, and whether this is the first process."""
    require_writable_folder(options.out if options.out.exists() else options.out.parent)
    library("clipag_plugins.finetune.updates", "finetune")
    from ..finetune import processes
    from ..finetune.settings import Source
    from ..hub import load_model

    device = choose_device(options.device)
    processes.join(device)
    is_first_process = os.environ.get("RANK", "0") == "0"
    model = load_model(options.model, device)
    source = Source(options.data_kind or _kind_of_data(options.data), options.data)
    try:
        train(source, model, is_first_process)
    except KeyboardInterrupt as interrupt:
        if is_first_process:
            print(f"clipag: interrupted; the same command continues from {options.out}.")
        return 128 + interrupt.args[0] if interrupt.args else INTERRUPTED
    processes.leave()
    return 0


def _kind_of_data(data: str) -> str:
    path = Path(data).expanduser()
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        return "table"
    if path.suffix == ".tar":
        return "shards"
    if (path / "captions.json").is_file():
        return "corpus"
    if path.is_dir():
        return "files"
    raise ClipagError(f"There is no {data}: name a table, shards, or a folder of pictures.")
