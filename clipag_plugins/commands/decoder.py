"""`clipag decoder`: train a small diffusion decoder of image embeddings."""

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
  clipag decoder photos.csv                            columns image and caption
  clipag decoder photos/ --side 64 --channels 64 128 192 --steps 50000 --out runs/decoder
  clipag unclip "a red apple" --decoder runs/decoder/decoder.safetensors
  torchrun --nproc-per-node 8 -m clipag_plugins decoder photos.csv --batch 512

The same command continues a stopped run. It needs pip install 'clipag-plugins[diffusers]'. All
pictures are held in memory at their small size.
"""


def add(commands: Commands) -> None:
    """Describe `clipag decoder`."""
    decoder = command(
        commands, "decoder", "train a decoder: pictures drawn of image embeddings", EXAMPLES
    )
    decoder.set_defaults(run=_run)
    add_training_options(
        decoder,
        "decoder",
        ("steps", int, 4000, "updates"),
        ("batch", int, 32, "pictures of an update, of all processes together"),
        ("rate", float, 1e-3, "peak learning rate"),
        ("side", int, 48, "of the decoder's pictures in pixels"),
        ("sketch", int, 12, "side of the sketch that the network starts from"),
        ("patch", int, 2, "pixels of a side that are one position: more make updates cheaper"),
        ("save-every", int, 200, "updates between checkpoints"),
    )
    decoder.add_argument(
        "--channels",
        type=int,
        nargs="+",
        default=[32, 64, 96],
        metavar="NUMBER",
        help="of the network's levels, from fine to coarse (default: 32 64 96)",
    )


def _run(options: argparse.Namespace) -> int:
    training = library("clipag_plugins.finetune.decoder", "finetune")
    recipe = training.Recipe(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        seed=options.seed,
        side=options.side,
        sketch=options.sketch,
        channels=tuple(options.channels),
        patch=options.patch,
        save_every=options.save_every,
    )

    def train(source: "Source", model: "ClipagModel", is_first_process: bool) -> None:
        pictures = training.encode(source, model, recipe.side, options.out / "pictures.safetensors")
        result = training.train(pictures, model, recipe, options.out)
        if is_first_process:
            print(result)

    return train_in_folder(options, train)
