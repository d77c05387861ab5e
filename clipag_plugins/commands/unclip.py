"""`clipag unclip`: a prior, a decoder, and CLIPAG."""

import argparse
from pathlib import Path

from ..defaults import DECODER_STEPS, REFINEMENT_STEPS
from ..errors import ClipagError
from .host import guiding_model, watched
from .options import (
    Commands,
    add_picture_options,
    command,
    exit_code,
    model_metadata,
    new_trajectory,
    plan,
    prefixed,
    run_options,
    save_trajectory,
    size_of,
)

EXAMPLES = """\
examples:
  clipag decoder photos/ --out runs/decoder            train a decoder first, then:
  clipag unclip "a red apple" --decoder runs/decoder/decoder.safetensors
  clipag unclip "a red apple" --decoder decoder.safetensors --prior prior.safetensors --count 4
  clipag unclip "a castle" --decoder decoder.safetensors --refinement 0    the decoder alone

It needs pip install 'clipag-plugins[diffusers]'.
"""


def add(commands: Commands) -> None:
    """Describe `clipag unclip`."""
    unclip = command(
        commands, "unclip", "draw a prompt by a prior and a diffusion decoder", EXAMPLES
    )
    unclip.set_defaults(run=_run, init="")
    add_picture_options(unclip, suffix=".png")
    add = unclip.add_argument
    add(
        "--decoder",
        type=Path,
        required=True,
        metavar="FILE",
        help="a decoder that clipag decoder trained",
    )
    add("--steps", type=int, default=DECODER_STEPS, help="of the diffusion (default: %(default)s)")
    add("--guidance", type=float, help="scale of classifier-free guidance (default: what suits)")
    add(
        "--refinement",
        type=int,
        default=REFINEMENT_STEPS,
        help="steps of the model's ascent after it; 0 is none (default: %(default)s)",
    )


def _run(options: argparse.Namespace) -> int:
    if not options.refinement and (options.trajectory or options.video):
        raise ClipagError(
            "--refinement is 0, but --trajectory and --video record it: take some steps."
        )
    seeds, pictures, outputs = plan(options, ".png")

    from ..pictures import save_png, to_pil
    from ..unclip import Decoding, unclip

    how = Decoding(options.steps, options.guidance, options.refinement, seeds, options.size)
    model = guiding_model(options, options.model)
    trajectory = new_trajectory(options, options.refinement)
    images, ascent = unclip(
        [prefixed(options, prompt) for prompt in options.prompts],
        options.decoder,
        model,
        how,
        callback=watched(options, trajectory),
        options=run_options(options),
    )
    metadata = [
        {
            "prompt": prefixed(options, prompt),
            "seed": seed,
            "size": size_of(images),
            "steps": options.steps,
            "refinement": options.refinement,
            "decoder": str(options.decoder),
            **model_metadata(model, options.precision, options.prior),
        }
        for prompt, seed in pictures
    ]
    for image, path, each in zip(images, outputs, metadata, strict=True):
        save_png(to_pil(image), path, each)
        print(path)
    if ascent is None:
        return 0
    save_trajectory(options, trajectory, ascent, outputs, metadata)
    return exit_code(ascent)
