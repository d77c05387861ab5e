"""clipag explain and clipag pag: what a model sees in a picture."""

import argparse
from pathlib import Path

from ..defaults import SAMPLES, SIGMA
from ..errors import ClipagError
from .attack import add_threat_model, threat_model
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

the maps and their colours need pip install 'clipag-plugins[explain]'.
"""
PAG_EXAMPLES = """\
examples:
  clipag pag cat.jpg "a dog"                        vanilla, smoothed, CLIPAG: Figure 3
  clipag pag cat.jpg "a dog" "a pirate" --sigma 0.25 --samples 64
  clipag pag cat.jpg "a dog" --models vanilla:ViT-B-32-laion2B ViT-B/32
"""


def add(commands: Commands) -> None:
    """Describe `clipag explain` and `clipag pag`."""
    explain = command(
        commands, "explain", "show where models look, clean and attacked", EXPLAIN_EXAMPLES
    )
    explain.set_defaults(run=_explain)
    explain.add_argument("image", type=Path, metavar="IMAGE", help="a picture")
    explain.add_argument("text", metavar="TEXT", help="what to look for in it")
    add = explain.add_argument
    add(
        "--method",
        choices=["gradcam", "gradcam++", "hirescam", "layercam", "grad", "smoothgrad"],
        default="hirescam",
        help="how a heat map is made (default: %(default)s)",
    )
    add_threat_model(explain)
    _add_shared(explain)

    pag = command(commands, "pag", "show models' input gradients, as Figure 3 does", PAG_EXAMPLES)
    pag.set_defaults(run=_pag)
    pag.add_argument("image", type=Path, metavar="IMAGE", help="a picture")
    pag.add_argument("texts", nargs="+", metavar="TEXT", help="what it should become; a row each")
    add = pag.add_argument
    add(
        "--sigma",
        type=float,
        default=SIGMA,
        help="noise of the smoothed model, for pixels in [0, 1] (default: %(default)s)",
    )
    add("--samples", type=int, default=SAMPLES, help="noisy copies (default: %(default)s)")
    _add_shared(pag)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_models(parser)
    add("--seed", type=seed_number, default=0, help="of all random numbers (default: %(default)s)")
    add("--size", type=int, default=224, help="side of a picture in pixels (default: %(default)s)")
    add("--device", help=DEVICE_HELP)
    add("--out", type=Path, help="the .png to write")


def _explain(options: argparse.Namespace) -> int:
    named = [(f"explain {options.text}", options.seed)]
    (path,) = output_paths(named, options.out, ".png", [options.image])

    import torch

    from ..attack import attack
    from ..explain import contrast_targets, heat_maps, over
    from ..hub import load_model
    from ..pictures import read_square, save_png, to_pil
    from ..sheet import sheet

    device = choose_device(options.device)
    image = read_square(options.image, options.size)[None].to(device)
    threat = threat_model(options)
    rows, names = [], []
    for name in options.models:
        model = load_model(name, device)
        generator = torch.Generator().manual_seed(options.seed)
        attacked = attack(model, image, options.text, threat, generator=generator)
        both = torch.cat([image, attacked])
        targets = contrast_targets(model, [options.text]) * 2
        heat = heat_maps(model, both, targets, options.method)
        clean, fooled = (over(x, h) for x, h in zip(both, heat, strict=True))
        rows.append([to_pil(image[0]), clean, to_pil(attacked[0]), fooled])
        names.append(f"{model.name}: {options.text}")
    columns = ["picture", options.method, "attacked", f"{options.method}, attacked"]
    facts = {
        "prompt": options.text,
        "models": ", ".join(options.models),
        "method": options.method,
        "attack": f"{options.norm}, eps {options.eps:g}, {options.steps} steps",
        "seed": options.seed,
        "Software": "clipag-plugins",
    }
    save_png(sheet(rows, columns, names), path, facts)
    print(path)
    return 0


def _pag(options: argparse.Namespace) -> int:
    named = [(f"pag {options.texts[0]}", options.seed)]
    (path,) = output_paths(named, options.out, ".png", [options.image])
    if len(options.models) != 2:
        raise ClipagError(
            f"--models names {len(options.models)}: give the vanilla model, which is also smoothed,"
            " and the robust one."
        )

    from ..hub import load_model
    from ..pag import gradient_images, input_gradient
    from ..pictures import read_square, save_png, to_pil
    from ..sheet import sheet
    from ..smoothing import smooth
    from ..targets import text_target

    device = choose_device(options.device)
    image = read_square(options.image, options.size)[None].to(device)
    vanilla, robust = (load_model(name, device) for name in options.models)
    smoothed = smooth(vanilla, options.sigma, options.samples, options.seed)
    rows = []
    for text in options.texts:
        row = [to_pil(image[0])]
        for model in (vanilla, smoothed, robust):
            gradient = input_gradient(model, image, [text_target(model, text)])
            row.append(to_pil(gradient_images(gradient)[0]))
        rows.append(row)
    columns = ["picture", vanilla.name, f"{vanilla.name}, smoothed", robust.name]
    facts = {
        "prompt": "; ".join(options.texts),
        "models": ", ".join(options.models),
        "sigma": options.sigma,
        "samples": options.samples,
        "seed": options.seed,
        "Software": "clipag-plugins",
    }
    save_png(sheet(rows, columns, options.texts), path, facts)
    print(path)
    return 0
