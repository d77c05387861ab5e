"""clipag style: CLIPStyler, with and without its network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import INTERRUPTED, ClipagError
from ..files import require_writable_folder, require_writable_or_creatable
from .options import (
    Commands,
    add_run_options,
    choose_device,
    code_of,
    command,
    made_by,
    need_target,
    output_paths,
    seed_number,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..integrations.clipstyler import Losses

EXAMPLES = """\
examples:
  clipag style photo.jpg "a watercolor painting with purple brush"
  clipag style photo.jpg "fire" --no-network --strength 2 --out fire.png
  clipag style frames/ "a mosaic" --keep-network --out styled/    every picture, in name order
  clipag style photo.jpg "fire" --tv 1 --threshold 0.7            the paper's other two terms
  clipag style --train-on photos/ "fire" --out fire.safetensors   one network for many pictures
  clipag style --apply fire.safetensors a.jpg b.jpg --out styled/
"""
# Everything else says how to style, which its network has learned.
TAKEN_BY_APPLY = {"apply", "command", "device", "inputs", "out", "run", "size"}


def add(commands: Commands) -> None:
    """Describe `clipag style`."""
    style = command(
        commands, "style", "repaint a photo in the style of a text (CLIPStyler)", EXAMPLES
    )
    style.set_defaults(run=lambda options: _run(options, style))
    add = style.add_argument
    add("inputs", nargs="*", metavar="IMAGE … TEXT",
        help="photos, or a folder of them, and last the style; with --train-on the style alone, "
        "with --apply photos alone")  # fmt: skip
    add("--network", action=argparse.BooleanOptionalAction, default=True,
        help="train a style network on the photo, or change its pixels (default: --network)",
    )  # fmt: skip
    add("--keep-network", action="store_true",
        help="go on with the network of the photo before: for the frames of a video")  # fmt: skip
    add("--train-on", type=Path, metavar="DIR", help="train one network on the photos in a folder")
    add("--apply", type=Path, metavar="NETWORK.safetensors",
        help="repaint with a network that --train-on made, in one pass")  # fmt: skip
    add("--model", default="clipag-mini",
        help="what guides: a known model or a weights file (default: %(default)s)")  # fmt: skip
    add(
        "--seed", type=seed_number, default=0, help="same seed, same picture (default: %(default)s)"
    )
    add("--size", type=int,
        help="most pixels of the longer side, the shape is kept; the side of the squares to train "
        "on (default: 512, of squares 224)")  # fmt: skip
    add("--steps", type=int, help="updates (default: 100; 400 to train on a folder)")
    add("--strength", type=float, help="weight of the style (default: 1)")
    add("--patches", type=int, help="random crops an update, 0 for none (default: 32)")
    add("--threshold", type=float,
        help="crops nearer to the style, in 1 - cosine, stop leading; the paper's is 0.7 "
        "(default: 0)")  # fmt: skip
    add("--whole", type=float, help="weight of the whole picture's style (default: 0.056)")
    add("--content", metavar="clip|vgg19|MODEL",
        help="whose features hold the content: those of the model that guides, VGG19's or "
        "another model's (default: clip)")  # fmt: skip
    add("--content-weight", type=float, help="weight of the content (default: 0.05)")
    add("--tv", type=float, help="weight of the total variation (default: 0)")
    add("--templates", action=argparse.BooleanOptionalAction,
        help="average the text over CLIP's 80 templates (default: --templates)")  # fmt: skip
    add_run_options(style)
    add("--out", type=Path,
        help="a .png for one photo, a folder for several, a .safetensors for --train-on "
        "(default: PHOTO-TEXT-SEED.png)")  # fmt: skip


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if options.train_on is not None and options.apply is not None:
        raise ClipagError("--train-on makes a network and --apply takes one: choose one of them.")
    if options.train_on is not None:
        return _train(options)
    if options.apply is None:
        return _style(options)
    for name in sorted(vars(options).keys() - TAKEN_BY_APPLY):
        if getattr(options, name) != parser.get_default(name):
            raise ClipagError(
                f"--apply takes a network as it is: leave --{name.replace('_', '-')} out."
            )
    return _apply(options)


def _style(options: argparse.Namespace) -> int:
    *images, text = options.inputs or [""]
    text = _text(options, text, images)
    photos, outputs = _plan(options, images, text)
    require_writable_or_creatable(options.trajectory)
    if options.keep_network and not options.network:
        raise ClipagError("--no-network leaves no network to keep: leave --keep-network out.")

    import torch

    from ..arguments import check_extent
    from ..hub import load_model
    from ..integrations import clipstyler
    from ..integrations.clipstyler import styling
    from ..integrations.clipstyler.network import StyleNetwork
    from ..trajectory import Trajectory

    losses = _losses(options)
    steps = styling.STEPS if options.steps is None else options.steps
    size = styling.SIZE if options.size is None else options.size
    check_extent(steps, size)
    model = load_model(options.model, choose_device(options.device))
    torch.manual_seed(options.seed)
    kept = StyleNetwork() if options.keep_network else None
    code = 0
    for photo, path in zip(photos, outputs, strict=True):
        try:
            image, alpha = _read(photo, size)
        except ClipagError as error:
            code = _passed_over(error, photos)
            continue
        trajectory = None if options.trajectory is None else Trajectory(steps)
        ascent = clipstyler.style(
            image,
            text,
            model,
            losses=losses,
            network=options.network if kept is None else kept,
            steps=steps,
            seed=options.seed,
            truncate=options.truncate,
            precision=options.precision,
            max_views=options.max_views,
            callback=trajectory,
        )
        facts = {
            "prompt": text,
            "photo": photo.name,
            "seed": options.seed,
            "size": size,
            "steps": ascent.steps,
            "network": "kept" if options.keep_network else "yes" if options.network else "none",
            **vars(losses),
            **made_by(model, options.precision),
        }
        _save(ascent.images[0], alpha, path, facts)
        if trajectory is not None:
            for written in trajectory.save(options.trajectory, ascent.images, [path], [facts]):
                print(written)
        if ascent.interrupted:
            return code_of(ascent)
    _say_content(losses, model.name)
    return code


def _train(options: argparse.Namespace) -> int:
    if len(options.inputs) != 1:
        raise ClipagError("--train-on DIR takes one style: clipag style --train-on DIR TEXT.")
    text = _text(options, options.inputs[0], [str(options.train_on)])
    if options.out is None or options.out.suffix != ".safetensors" or options.out.is_dir():
        raise ClipagError("--out must name the network's file, as fire.safetensors.")
    require_writable_folder(options.out.parent)
    need_target(options.out, [options.model])
    if not options.network or options.keep_network or options.trajectory is not None:
        raise ClipagError(
            "--train-on makes a network and no pictures: leave --no-network, --keep-network and "
            "--trajectory out."
        )
    photos = _pictures_in(options.train_on)

    from ..arguments import check_extent
    from ..hub import load_model
    from ..integrations import clipstyler
    from ..integrations.clipstyler import network as networks
    from ..integrations.clipstyler import styling
    from ..pictures import read_picture

    losses = _losses(options)
    readable = []
    for photo in photos:  # all before the training, of which none may be lost
        try:
            read_picture(photo)
        except ClipagError as error:
            _passed_over(error, photos)
        else:
            readable.append(photo)
    steps = styling.TRAINING_STEPS if options.steps is None else options.steps
    size = styling.TRAINING_SIDE if options.size is None else options.size
    check_extent(steps, size)
    model = load_model(options.model, choose_device(options.device))
    network, done = clipstyler.train(
        readable,
        text,
        model,
        losses=losses,
        steps=steps,
        size=size,
        seed=options.seed,
        truncate=options.truncate,
        precision=options.precision,
        max_views=options.max_views,
    )
    facts = {"prompt": text, "seed": options.seed, "model": model.name, "steps": done}
    networks.save(network, options.out, {key: str(value) for key, value in facts.items()})
    print(options.out)
    _say_content(losses, model.name)
    if done < steps:
        print(f"clipag: interrupted after {done} steps; the network is kept.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _apply(options: argparse.Namespace) -> int:
    if not options.inputs:
        raise ClipagError("There is no photo: clipag style --apply NETWORK.safetensors IMAGE …")
    photos, outputs = _plan(options, options.inputs, options.apply.stem)

    from ..arguments import check_extent
    from ..integrations import clipstyler
    from ..integrations.clipstyler import network as networks
    from ..integrations.clipstyler import styling

    size = styling.SIZE if options.size is None else options.size
    check_extent(1, size)
    device = choose_device(options.device)
    network, facts = networks.load(options.apply)
    network.to(device)
    code = 0
    for photo, path in zip(photos, outputs, strict=True):
        try:
            image, alpha = _read(photo, size)
        except ClipagError as error:
            code = _passed_over(error, photos)
            continue
        repainted = clipstyler.apply(network, image.to(device))
        made_by = {"photo": photo.name, "network": options.apply.name, "Software": "clipag-plugins"}
        _save(repainted, alpha, path, {**facts, **made_by})
    return code


def _text(options: argparse.Namespace, text: str, images: Sequence[str]) -> str:
    """Return the style with its prefix, after making sure that it is one and not a photo."""
    if not text.strip() or (not images and Path(text).exists()):
        raise ClipagError("There is no style: say it after the photo, as clipag style IMAGE TEXT.")
    if not images:
        raise ClipagError(
            "There is no photo: name it before the style, as clipag style IMAGE TEXT."
        )
    return f"{options.prefix} {text}".strip()


def _plan(
    options: argparse.Namespace, images: Sequence[str], style: str
) -> tuple[list[Path], list[Path]]:
    """Return the photos and where each is written; what can be refused is refused here."""
    named = [Path(image) for image in images]
    photos = [
        photo for path in named for photo in (_pictures_in(path) if path.is_dir() else [path])
    ]
    out: Path | None = options.out
    if len(named) == 1 and not named[0].is_dir():
        outputs = output_paths([(f"{named[0].stem} {style}", options.seed)], out, ".png")
    elif out is None or (out.suffix.lower() == ".png" and not out.is_dir()):
        raise ClipagError(f"--out must name a folder for {len(photos)} pictures.")
    else:
        require_writable_or_creatable(out)
        outputs = [out / f"{photo.stem}.png" for photo in photos]
    seen: dict[Path, Path] = {}
    for photo, path in zip(photos, outputs, strict=True):
        if path in seen:
            raise ClipagError(f"{seen[path]} and {photo} would both become {path}: rename one.")
        seen[path] = photo
        need_target(path, [photo])
    return photos, outputs


def _pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder in the order of their names."""
    from PIL import Image

    if not folder.is_dir():
        raise ClipagError(f"There is no folder {folder}: name one with photos.")
    known = Image.registered_extensions()
    pictures = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in known and not path.name.startswith(".")
    )
    if not pictures:
        raise ClipagError(f"There is no picture in {folder}: name a folder with photos.")
    return pictures


def _losses(options: argparse.Namespace) -> "Losses":
    from ..integrations.clipstyler import Losses

    names = ("strength", "patches", "threshold", "whole", "content", "content_weight", "tv",
             "templates")  # fmt: skip
    chosen = {name: getattr(options, name) for name in names}
    return Losses(**{name: value for name, value in chosen.items() if value is not None})


def _say_content(losses: "Losses", model: str) -> None:
    if losses.content_weight:
        whose = f"{model}'s own" if losses.content == "clip" else f"{losses.content}'s"
        print(f"clipag: the content was held by {whose} features.", file=sys.stderr)


def _read(photo: Path, size: int) -> "tuple[Tensor, Image.Image | None]":
    """Return a photo as (3, H, W) with the longer side at most `size`, and its alpha if any."""
    from ..integrations.clipstyler.styling import check_sides
    from ..pictures import from_pil, on_white, read_rgba

    picture = read_rgba(photo, still=True)
    scale = min(1.0, size / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    alpha = picture.getchannel("A").resize((width, height))
    seen_through = alpha.getextrema() != (255, 255)
    image = from_pil(on_white(picture), (width, height))
    check_sides(image[None])
    return image, alpha if seen_through else None


def _save(
    image: "Tensor", alpha: "Image.Image | None", path: Path, facts: dict[str, object]
) -> None:
    from ..pictures import save_png, to_pil

    picture = to_pil(image)
    if alpha is not None:
        picture.putalpha(alpha)
    save_png(picture, path, facts)
    print(path)


def _passed_over(error: ClipagError, photos: Sequence[Path]) -> int:
    """Say why a photo was passed over, where there are others; return the exit code."""
    if len(photos) == 1:
        raise error
    print(f"clipag: {error}", file=sys.stderr)
    return 2
