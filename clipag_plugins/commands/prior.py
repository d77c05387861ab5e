"""`clipag prior`: train a prior on pictures with captions."""

import argparse
from typing import TYPE_CHECKING

from ..errors import library
from .options import Commands, command
from .training import add_training_options, train_in_folder

if TYPE_CHECKING:
    from ..base import ClipagModel
    from ..finetune.settings import Source

EXAMPLES = """\
examples:
  clipag prior photos.csv                              columns image and caption
  clipag prior "shards/{0000..0099}.tar" --model ViT-B/32 --steps 100000 --batch 1024
  clipag prior photos/ --kind autoregressive --out runs/prior
  clipag generate "a red apple" --model clipag-mini --prior runs/prior/prior.safetensors
  torchrun --nproc-per-node 8 -m clipag_plugins prior photos.csv

The same command continues a stopped run. A prior of the kind "diffusion" needs
pip install 'clipag-plugins[diffusers]'.
"""


def add(commands: Commands) -> None:
    """Describe `clipag prior`."""
    prior = command(
        commands, "prior", "train a prior: image embeddings drawn for a caption", EXAMPLES
    )
    prior.set_defaults(run=_run)
    add_training_options(
        prior,
        "prior",
        ("steps", int, 4000, "updates"),
        ("batch", int, 128, "pairs of an update, of all processes together"),
        ("rate", float, 1e-3, "peak learning rate"),
        ("width", int, 192, "of the transformer"),
        ("layers", int, 6, "of the transformer"),
        ("heads", int, 6, "of the transformer's attention"),
        ("text-length", int, 32, "tokens of a caption that it reads"),
        ("components", int, 96, "principal components that an autoregressive prior draws"),
        ("save-every", int, 500, "updates between checkpoints"),
    )
    add = prior.add_argument
    add("--kind", choices=("diffusion", "autoregressive"), default="diffusion", help="of the prior")
    add(
        "--template",
        action="append",
        dest="templates",
        metavar="TEXT",
        help='a sentence with {} in place of the caption, such as "a {}"; of several, each pair '
        "draws one (default: the caption alone)",
    )


def _run(options: argparse.Namespace) -> int:
    training = library("clipag_plugins.finetune.prior", "finetune")
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

    def train(source: "Source", model: "ClipagModel", is_first_process: bool) -> None:
        from ..prior.files import load_prior

        pairs = training.encode(source, model, options.out / "embeddings.safetensors")
        known, held_out = training.split(pairs)
        result = training.train(known, model, recipe, options.out)
        if is_first_process:
            figures = training.measure(load_prior(result, model), model, known, held_out)
            print(f"{len(held_out.captions)} captions held out: distance² / similarity to pictures")
            for name, figure in figures.items():
                print(f"  {figure['MSE']:.3f} / {figure['similarity']:.3f}  {name}")
            print(result)

    return train_in_folder(options, train)
