"""`clipag explain` and `clipag pag`: show what a model sees in a picture."""

import argparse
from pathlib import Path

from ..defaults import HEAT_MAP_METHOD, HEAT_MAP_METHODS, SAMPLES, SIDE, SIGMA
from ..errors import ClipagError
from .attack import add_threat_model, threat_model
from .host import guiding_model
from .options import (
    DEVICE_HELP,
    Commands,
    add_models,
    choose_device,
    command,
    output_paths,
    seed_number,
)

EXPLAIN_EXAMPLES = """\
examples:
  clipag explain cat.jpg "a cat"                    heat maps of both embedded models
  clipag explain cat.jpg "a cat" --method smoothgrad --models clipag-mini
  clipag explain cat.jpg "a cat" --models vanilla:ViT-B-32-laion2B ViT-B/32 --out heat.png
  clipag explain cat.jpg "a cat" --norm l2 --eps 3

Needs pip install 'clipag-plugins[explain]'.
"""
PAG_EXAMPLES = """\
examples:
  clipag pag cat.jpg "a dog"                        vanilla, smoothed and CLIPAG, as Figure 3
  clipag pag cat.jpg "a dog" "a pirate" --sigma 0.25 --samples 64
  clipag pag cat.jpg "a dog" --models vanilla:ViT-B-32-laion2B ViT-B/32
"""


def add(commands: Commands) -> None:
    """Add `clipag explain` and `clipag pag`."""
    explain = command(
        commands, "explain", "show where models look, with and without an attack", EXPLAIN_EXAMPLES
    )
    explain.set_defaults(run=_explain)
    explain.add_argument("image", type=Path, metavar="IMAGE", help="a picture")
    explain.add_argument("text", metavar="TEXT", help="what to look for in the picture")
    add = explain.add_argument
    add(
        "--method",
        choices=HEAT_MAP_METHODS,
        default=HEAT_MAP_METHOD,
        help="how a heat map is made (default: %(default)s)",
    )
    add_threat_model(explain)
    _add_shared(explain)

    pag = command(commands, "pag", "show models' input gradients, as in Figure 3", PAG_EXAMPLES)
    pag.set_defaults(run=_pag)
    pag.add_argument("image", type=Path, metavar="IMAGE", help="a picture")
    pag.add_argument(
        "texts", nargs="+", metavar="TEXT", help="what the picture should become; each gives a row"
    )
    add = pag.add_argument
    add(
        "--sigma",
        type=float,
        default=SIGMA,
        help="noise of the smoothed model, for pixels in [0, 1] (default: %(default)s)",
    )
    add(
        "--samples",
        type=int,
        default=SAMPLES,
        help="noisy copies of the picture (default: %(default)s)",
    )
    _add_shared(pag)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_models(parser)
    add("--seed", type=seed_number, default=0, help="of all random numbers (default: %(default)s)")
    add("--size", type=int, default=SIDE, help="side of a picture in pixels (default: %(default)s)")
    add("--device", help=DEVICE_HELP)
    add("--out", type=Path, help="the .png to write, which is replaced if it exists")


def _explain(options: argparse.Namespace) -> int:
    drawing = (f"explain {options.text}", options.seed)
    (path,) = output_paths([drawing], options.out, ".png", [options.image])

    import torch

    from ..attack import attack
    from ..explain import contrast_targets, heat_maps, overlay
    from ..pictures import read_square, save_png, to_pil
    from ..sheet import sheet

    device = choose_device(options.device)
    image = read_square(options.image, options.size)[None].to(device)
    threat = threat_model(options)
    rows, names = [], []
    for name in options.models:
        model = guiding_model(options, name)
        generator = torch.Generator().manual_seed(options.seed)
        attacked = attack(model, image, options.text, threat, generator=generator)
        images = torch.cat([image, attacked])
        targets = contrast_targets(model, [options.text]) * 2
        row = []
        for pixels, heat in zip(
            images, heat_maps(model, images, targets, options.method), strict=True
        ):
            row += [to_pil(pixels), overlay(pixels, heat)]
        rows.append(row)
        names.append(f"{model.name}: {options.text}")
    columns = ["picture", options.method, "attacked", f"{options.method}, attacked"]
    metadata = {
        "prompt": options.text,
        "models": ", ".join(options.models),
        "method": options.method,
        "attack": f"{options.norm}, eps {options.eps:g}, {options.steps} steps",
        "seed": options.seed,
        "Software": "clipag-plugins",
    }
    save_png(sheet(rows, columns, names), path, metadata)
    print(path)
    return 0


def _pag(options: argparse.Namespace) -> int:
    drawing = (f"pag {options.texts[0]}", options.seed)
    (path,) = output_paths([drawing], options.out, ".png", [options.image])
    if len(options.models) != 2:
        raise ClipagError(
            f"`models` names {len(options.models)}: give two, the vanilla model (which is also "
            "smoothed) and the robust one."
        )

    from ..pag import gradient_images, input_gradient
    from ..pictures import read_square, save_png, to_pil
    from ..sheet import sheet
    from ..smoothing import smooth
    from ..targets import text_target

    device = choose_device(options.device)
    image = read_square(options.image, options.size)[None].to(device)
    vanilla, robust = (guiding_model(options, name) for name in options.models)
    smoothed = smooth(vanilla, options.sigma, options.samples, options.seed)
    rows = []
    for text in options.texts:
        row = [to_pil(image[0])]
        for model in (vanilla, smoothed, robust):
            gradient = input_gradient(model, image, [text_target(model, text)])
            row.append(to_pil(gradient_images(gradient)[0]))
        rows.append(row)
    columns = ["picture", vanilla.name, f"{vanilla.name}, smoothed", robust.name]
    metadata = {
        "prompt": "; ".join(options.texts),
        "models": ", ".join(options.models),
        "sigma": options.sigma,
        "samples": options.samples,
        "seed": options.seed,
        "Software": "clipag-plugins",
    }
    save_png(sheet(rows, columns, options.texts), path, metadata)
    print(path)
    return 0
