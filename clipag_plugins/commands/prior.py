"""`clipag prior`: train a prior on pictures with captions."""

import argparse
import os
from pathlib import Path

from ..errors import INTERRUPTED, ClipagError, library
from ..files import require_writable_folder
from .options import DEVICE_HELP, Commands, add_model, add_seed, choose_device, command

EXAMPLES = """\
examples:
  clipag prior photos.csv                              columns image and caption
  clipag prior "shards/{0000..0099}.tar" --model ViT-B/32 --steps 100000 --batch 1024
  clipag prior photos/ --kind autoregressive --out runs/prior
  clipag generate "a red apple" --prior runs/prior/prior.safetensors
  torchrun --nproc-per-node 8 -m clipag_plugins prior photos.csv

The same command continues a stopped run. A prior of the kind "diffusion" needs
pip install 'clipag-plugins[diffusers]'.
"""
KINDS_OF_DATA = ("shards", "files", "table", "classes", "corpus")


def add(commands: Commands) -> None:
    """Describe `clipag prior`."""
    prior = command(
        commands, "prior", "train a prior: image embeddings drawn for a caption", EXAMPLES
    )
    prior.set_defaults(run=_run)
    add = prior.add_argument
    add("data", metavar="DATA", help="pictures with captions: a table, shards, or a folder")
    add(
        "--data-kind",
        choices=KINDS_OF_DATA,
        help="how to read them: see docs/finetune.md (default: as the path looks)",
    )
    add("--kind", choices=("diffusion", "autoregressive"), default="diffusion", help="of the prior")
    add_model(prior)
    add_seed(prior)
    for name, kind, default, what in (
        ("steps", int, 4000, "updates"),
        ("batch", int, 128, "pairs of an update, of all processes together"),
        ("rate", float, 1e-3, "peak learning rate"),
        ("width", int, 192, "of the transformer"),
        ("layers", int, 6, "of the transformer"),
        ("heads", int, 6, "of the transformer's attention"),
        ("text-length", int, 32, "tokens of a caption that it reads"),
        ("components", int, 96, "principal components that an autoregressive prior draws"),
        ("save-every", int, 500, "updates between checkpoints"),
    ):
        add(f"--{name}", type=kind, default=default, help=f"{what} (default: %(default)s)")
    add(
        "--template",
        action="append",
        dest="templates",
        metavar="TEXT",
        help='a sentence with {} in place of the caption, such as "a {}"; of several, each pair '
        "draws one (default: the caption alone)",
    )
    add("--device", help=DEVICE_HELP)
    add("--out", type=Path, default=Path("prior"), help="folder of the run (default: %(default)s)")


def _run(options: argparse.Namespace) -> int:
    require_writable_folder(options.out if options.out.exists() else options.out.parent)
    training = library("clipag_plugins.finetune.prior", "finetune")
    from ..finetune import processes
    from ..finetune.settings import Source
    from ..hub import load_model
    from ..prior.drawing import load_prior

    recipe = training.Recipe(
        kind=options.kind,
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        seed=options.seed,
        templates=tuple(options.templates or ("{}",)),
        text_length=options.text_length,
        width=options.width,
        layers=options.layers,
        heads=options.heads,
        components=options.components,
        save_every=options.save_every,
    )
    device = choose_device(options.device)
    processes.join(device)
    is_first_process = os.environ.get("RANK", "0") == "0"
    model = load_model(options.model, device)
    source = Source(options.data_kind or _kind_of_data(options.data), options.data)
    try:
        pairs = training.encode(source, model, options.out / "embeddings.safetensors")
        known, held_out = training.split(pairs)
        result = training.train(known, model, recipe, options.out)
        if is_first_process:
            figures = training.measure(load_prior(result, model), model, known, held_out)
            print(f"{len(held_out.captions)} captions held out: distance² / similarity to pictures")
            for name, figure in figures.items():
                print(f"  {figure['MSE']:.3f} / {figure['similarity']:.3f}  {name}")
            print(result)
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
