"""`clipag attack`: change a picture slightly so that a model sees something else."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import fraction
from ..defaults import MODEL, NORMS, SIDE
from .host import guiding_model, watched
from .options import (
    DEVICE_HELP,
    Commands,
    add_out,
    choose_device,
    command,
    output_paths,
    seed_number,
)

if TYPE_CHECKING:
    from ..attack import ThreatModel

EXAMPLES = """\
examples:
  clipag attack cat.jpg "a cat"                          no longer a cat for clipag-mini (eq. 4)
  clipag attack cat.jpg "a cat" --model clip-mini --norm l2 --eps 1 --steps 50
  clipag attack cat.jpg "a cat" --towards "a dog" --norm l2 --eps 20 --steps 100     Figure 1
"""


def add(commands: Commands) -> None:
    """Add `clipag attack`."""
    attack = command(
        commands,
        "attack",
        "change a picture slightly so that a model sees something else",
        EXAMPLES,
    )
    attack.set_defaults(run=_run)
    add = attack.add_argument
    add("image", type=Path, metavar="IMAGE", help="a picture")
    add("text", metavar="TEXT", help="what the picture shows")
    add("--towards", metavar="TEXT", help="what the model should see instead (default: not TEXT)")
    add(
        "--model",
        default=MODEL,
        help="what to attack: a known model or a weights file (default: %(default)s)",
    )
    add_threat_model(attack)
    add("--seed", type=seed_number, default=0, help="of the random start (default: %(default)s)")
    add("--size", type=int, default=SIDE, help="side in pixels (default: %(default)s)")
    add("--device", help=DEVICE_HELP)
    add_out(attack, "the .png to write", "attack-TEXT-SEED.png")


def add_threat_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of an attack, with the paper's defaults (appendix B)."""
    add = parser.add_argument
    add(
        "--norm",
        choices=NORMS,
        default="linf",
        help="norm that limits the change (default: %(default)s)",
    )
    add(
        "--eps",
        type=fraction,
        default=8 / 255,
        help="largest change, for pixels in [0, 1]; may be a fraction (default: 8/255)",
    )
    add("--steps", type=int, default=20, help="steps of PGD (default: %(default)s)")
    add(
        "--step-size",
        type=fraction,
        help="step of PGD (default: 2.5 · eps / steps, which is 1/255 by default)",
    )


def threat_model(options: argparse.Namespace) -> "ThreatModel":
    """Return the threat model that the options describe."""
    from ..attack import threat_model_of

    return threat_model_of(options.norm, options.eps, options.steps, options.step_size)


def _run(options: argparse.Namespace) -> int:
    drawing = (f"attack {options.text}", options.seed)
    (path,) = output_paths([drawing], options.out, ".png", [options.image])

    import torch

    from ..attack import attack
    from ..base import embed_images
    from ..pictures import read_square, save_png, to_pil
    from ..targets import text_target

    device = choose_device(options.device)
    image = read_square(options.image, options.size)[None].to(device)
    model = guiding_model(options, options.model)
    generator = torch.Generator().manual_seed(options.seed)
    attacked = attack(
        model,
        image,
        options.text,
        threat_model(options),
        options.towards,
        generator,
        watched(options),
    )
    other = options.towards or f"not {options.text}"
    metadata = {
        "prompt": options.text,
        "towards": other,
        "model": model.name,
        "attack": f"{options.norm}, eps {options.eps:g}, {options.steps} steps",
        "seed": options.seed,
        "Software": "clipag-plugins",
    }
    save_png(to_pil(attacked[0]), path, metadata)
    print(path)
    with torch.no_grad():
        embeddings = embed_images(model, torch.cat([image, attacked]))
        for text in (options.text, other):
            before, after = (embeddings @ text_target(model, text).embedding).tolist()
            print(f"similarity to {text!r}: {before:.3f} before, {after:.3f} after")
    return 0
