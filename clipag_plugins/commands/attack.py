"""clipag attack: change a picture a little, and what a model sees in it a lot."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import fraction
from .options import DEVICE_HELP, Commands, choose_device, command, output_paths, seed_number

if TYPE_CHECKING:
    from ..attack import ThreatModel

EXAMPLES = """\
examples:
  clipag attack cat.jpg "a cat"                          no longer a cat to clipag-mini (eq. 4)
  clipag attack cat.jpg "a cat" --model clip-mini --norm l2 --eps 1 --steps 50
  clipag attack cat.jpg "a cat" --towards "a dog" --norm l2 --eps 20 --steps 100     Figure 1
"""


def add(commands: Commands) -> None:
    """Describe `clipag attack`."""
    attack = command(commands, "attack", "attack what a model sees in a picture", EXAMPLES)
    attack.set_defaults(run=_run)
    add = attack.add_argument
    add("image", type=Path, metavar="IMAGE", help="a picture")
    add("text", metavar="TEXT", help="what it shows")
    add("--towards", metavar="TEXT", help="what it shall become to the model (default: not TEXT)")
    add(
        "--model",
        default="clipag-mini",
        help="whose eyes are fooled: a known model or a weights file (default: %(default)s)",
    )
    add_threat_model(attack)
    add("--seed", type=seed_number, default=0, help="of the random start (default: %(default)s)")
    add("--size", type=int, default=224, help="side in pixels (default: %(default)s)")
    add("--device", help=DEVICE_HELP)
    add("--out", type=Path, help="the .png to write (default: attack-TEXT-SEED.png)")


def add_threat_model(parser: argparse.ArgumentParser) -> None:
    """Add what describes an attack; the defaults are the paper's (appendix B)."""
    add = parser.add_argument
    add(
        "--norm",
        choices=["linf", "l2"],
        default="linf",
        help="of the change (default: %(default)s)",
    )
    add(
        "--eps",
        type=fraction,
        default=8 / 255,
        help="largest change, for pixels in [0, 1]; may be a fraction (default: 8/255)",
    )
    add("--steps", type=int, default=20, help="of PGD (default: %(default)s)")
    add("--step-size", type=fraction, help="of PGD (default: 2.5 · eps / steps; 1/255 as given)")


def threat_model(options: argparse.Namespace) -> "ThreatModel":
    """Return the threat model that the options describe."""
    from ..attack import threat_model_of

    return threat_model_of(options.norm, options.eps, options.steps, options.step_size)


def _run(options: argparse.Namespace) -> int:
    named = [(f"attack {options.text}", options.seed)]
    (path,) = output_paths(named, options.out, ".png", [options.image])

    import torch

    from ..attack import attack
    from ..base import embed_images
    from ..hub import load_model
    from ..pictures import read_square, save_png, to_pil
    from ..targets import text_target

    device = choose_device(options.device)
    image = read_square(options.image, options.size)[None].to(device)
    model = load_model(options.model, device)
    generator = torch.Generator().manual_seed(options.seed)
    attacked = attack(model, image, options.text, threat_model(options), options.towards, generator)
    picture = to_pil(attacked[0])
    other = options.towards or f"not {options.text}"
    facts = {
        "prompt": options.text,
        "towards": other,
        "model": model.name,
        "attack": f"{options.norm}, eps {options.eps:g}, {options.steps} steps",
        "seed": options.seed,
        "Software": "clipag-plugins",
    }
    save_png(picture, path, facts)
    print(path)
    with torch.no_grad():
        both = embed_images(model, torch.cat([image, attacked]))
        for text in (options.text, other):
            before, after = (both @ text_target(model, text).embedding).tolist()
            print(f"similarity to {text!r}: {before:.3f} before, {after:.3f} after")
    return 0
