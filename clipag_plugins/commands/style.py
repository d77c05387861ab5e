"""clipag style: CLIPStyler, with and without its network."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..defaults import (
    DRAWING_MODEL,
    STYLE_CONTENT,
    STYLE_CONTENT_WEIGHT,
    STYLE_NETWORK_STEPS,
    STYLE_PATCHES,
    STYLE_SIZE,
    STYLE_STEPS,
    STYLE_STRENGTH,
    STYLE_THRESHOLD,
    STYLE_TRAINING_SIZE,
    STYLE_TRAINING_STEPS,
    STYLE_TV,
    STYLE_WHOLE,
)
from ..errors import INTERRUPTED, ClipagError
from ..files import require_writable_folder, require_writable_or_creatable
from .host import guiding_model, watched
from .options import (
    Commands,
    add_model,
    add_out,
    add_run_options,
    add_seed,
    choose_device,
    command,
    exit_code,
    free_path,
    model_metadata,
    need_target,
    new_trajectory,
    output_paths,
    recording_files,
    run_options,
    save_trajectory,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..integrations.clipstyler import Losses

EXAMPLES = """\
examples:
  clipag style photo.jpg "a watercolor painting with purple brush"
  clipag style photo.jpg "fire" --strength 0.25 --out fire.png    keeps more of the photo
  clipag style photo.jpg "fire" --network                         by CLIPStyler's style network
  clipag style frames/ "a mosaic" --keep-network --out styled/    every picture, in name order
  clipag style photo.jpg "fire" --tv 1 --threshold 0.7            the paper's other two terms
  clipag style --train-on photos/ "fire" --out fire.safetensors   one network for many pictures
  clipag style --apply fire.safetensors a.jpg b.jpg --out styled/
"""
# The other options say how to style, which the network of --apply has learned already.
APPLY_OPTIONS = {"apply", "command", "device", "inputs", "out", "run", "size"}


def add(commands: Commands) -> None:
    """Describe `clipag style`."""
    style = command(
        commands, "style", "repaint a photo in the style of a text (CLIPStyler)", EXAMPLES
    )
    add = style.add_argument
    add("inputs", nargs="*", metavar="IMAGE … TEXT",
        help="photos, or a folder of them, then the style; only the style with --train-on, only "
        "photos with --apply")  # fmt: skip
    add("--network", action=argparse.BooleanOptionalAction,
        help="train a style network on the photo, or change the picture itself "
        "(default: --no-network)")  # fmt: skip
    add("--keep-network", action="store_true",
        help="train a network, and go on with that of the previous photo: for a video's frames",
    )  # fmt: skip
    add("--train-on", type=Path, metavar="DIR", help="train one network on the photos in a folder")
    add("--apply", type=Path, metavar="NETWORK.safetensors",
        help="repaint with a network that --train-on made, in one pass")  # fmt: skip
    add_model(style)
    style.set_defaults(run=lambda options: _run(options, style), model=DRAWING_MODEL)
    add_seed(style)
    add("--size", type=int,
        help="most pixels of the longer side, the shape is kept; the side of the squares to train "
        f"on (default: {STYLE_SIZE}, of squares {STYLE_TRAINING_SIZE})")  # fmt: skip
    add("--steps", type=int,
        help=f"updates (default: {STYLE_STEPS}; {STYLE_NETWORK_STEPS} with a network; "
        f"{STYLE_TRAINING_STEPS} to train on a folder)")  # fmt: skip
    add("--mask", type=Path, metavar="IMAGE",
        help="style only what is white in this mask; the rest stays as it is")  # fmt: skip
    add("--strength", type=float, default=STYLE_STRENGTH,
        help="weight of the style (default: %(default)g)")  # fmt: skip
    add("--patches", type=int, default=STYLE_PATCHES,
        help="random crops an update, 0 for none (default: %(default)s)")  # fmt: skip
    add("--threshold", type=float, default=STYLE_THRESHOLD,
        help="crops nearer to the style, in 1 - cosine, stop pulling; the paper's is 0.7 "
        "(default: %(default)g)")  # fmt: skip
    add("--whole", type=float, default=STYLE_WHOLE,
        help="weight of the whole picture's style (default: %(default).3f)")  # fmt: skip
    add("--content", default=STYLE_CONTENT, metavar="clip|vgg19|MODEL",
        help="the network of the content features: the model that guides, VGG19 or another model "
        "(default: %(default)s)")  # fmt: skip
    add("--content-weight", type=float, default=STYLE_CONTENT_WEIGHT,
        help="weight of the content (default: %(default)s)")  # fmt: skip
    add("--tv", type=float, default=STYLE_TV,
        help="weight of the total variation (default: %(default)g)")  # fmt: skip
    add("--templates", action=argparse.BooleanOptionalAction, default=True,
        help="average the text over CLIP's 80 templates (default: --templates)")  # fmt: skip
    add_run_options(style)
    add_out(style, "a .png for one photo or a .safetensors for --train-on",
            "PHOTO-TEXT-SEED.png")  # fmt: skip


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if options.train_on is not None and options.apply is not None:
        raise ClipagError("--train-on makes a network and --apply takes one: choose one of them.")
    if options.train_on is not None:
        return _train(options)
    if options.apply is None:
        return _style(options)
    for name in sorted(vars(options).keys() - APPLY_OPTIONS):
        if getattr(options, name) != parser.get_default(name):
            raise ClipagError(
                f"--apply takes a network as it is: leave --{name.replace('_', '-')} out."
            )
    return _apply(options)


def _style(options: argparse.Namespace) -> int:
    *images, text = options.inputs or [""]
    text = _text(options, text, images)
    photos, outputs = _plan(options, images, text)
    is_kept = options.keep_network
    if is_kept and options.network is False:
        raise ClipagError("--no-network leaves no network to keep: leave --keep-network out.")

    from ..arguments import check_side, check_steps
    from ..integrations import clipstyler
    from ..masks import weight_of

    losses = _losses(options)
    has_network = is_kept or bool(options.network)
    steps = clipstyler.usual_steps(has_network) if options.steps is None else options.steps
    size = STYLE_SIZE if options.size is None else options.size
    check_steps(steps)
    check_side(size)
    model = guiding_model(options, options.model)
    network = clipstyler.new_network(options.seed) if is_kept else has_network
    code = 0
    for photo, path in zip(photos, outputs, strict=True):
        try:
            image, alpha = _read(photo, size)
            mask = None
            if options.mask is not None:
                mask = weight_of(options.mask, (image.shape[2], image.shape[1]))
        except ClipagError as error:
            code = _skipped(error, photos)
            continue
        trajectory = new_trajectory(options, steps)
        ascent = clipstyler.style(
            image,
            text,
            model,
            losses=losses,
            network=network,
            mask=mask,
            steps=steps,
            seed=options.seed,
            callback=watched(options, trajectory),
            options=run_options(options),
        )
        metadata = {
            "prompt": text,
            "photo": photo.name,
            "seed": options.seed,
            "size": size,
            "steps": ascent.steps,
            "network": "kept" if is_kept else "yes" if has_network else "none",
            **vars(losses),
            **({} if options.mask is None else {"mask": options.mask}),
            **model_metadata(model, options.precision, options.prior),
        }
        _save(ascent.images[0], alpha, path, metadata)
        save_trajectory(options, trajectory, ascent, [path], [metadata])
        if ascent.interrupted:
            return exit_code(ascent)
    _report_content(losses, model.name)
    return code


def _train(options: argparse.Namespace) -> int:
    if len(options.inputs) != 1:
        raise ClipagError("--train-on DIR takes one style: clipag style --train-on DIR TEXT.")
    text = _text(options, options.inputs[0], [str(options.train_on)])
    if options.out is None or options.out.suffix != ".safetensors" or options.out.is_dir():
        raise ClipagError("--out must name the network's file, as fire.safetensors.")
    require_writable_folder(options.out.parent)
    need_target(options.out, [options.model])
    is_recorded = options.trajectory is not None or options.video is not None
    if options.network is False or options.keep_network or is_recorded:
        raise ClipagError(
            "--train-on makes a network and no pictures: leave --no-network, --keep-network, "
            "--trajectory and --video out."
        )
    photos = _pictures_in(options.train_on)

    from ..arguments import check_side, check_steps
    from ..integrations import clipstyler
    from ..integrations.clipstyler import network as networks

    losses = _losses(options)
    readable = _readable(photos)
    steps = STYLE_TRAINING_STEPS if options.steps is None else options.steps
    size = STYLE_TRAINING_SIZE if options.size is None else options.size
    check_steps(steps)
    check_side(size)
    model = guiding_model(options, options.model)
    ascent = clipstyler.train(
        readable,
        text,
        model,
        losses=losses,
        steps=steps,
        size=size,
        seed=options.seed,
        options=run_options(options),
    )
    metadata = {"prompt": text, "seed": options.seed, "model": model.name, "steps": ascent.steps}
    network = cast("clipstyler.StyleCanvas", ascent.canvas).network
    networks.save(network, options.out, {key: str(value) for key, value in metadata.items()})
    print(options.out)
    _report_content(losses, model.name)
    if ascent.interrupted:
        print(
            f"clipag: interrupted after {ascent.steps} steps; the network is kept.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


def _apply(options: argparse.Namespace) -> int:
    if not options.inputs:
        raise ClipagError("There is no photo: clipag style --apply NETWORK.safetensors IMAGE …")
    photos, outputs = _plan(options, options.inputs, options.apply.stem)

    from ..arguments import check_side
    from ..integrations import clipstyler
    from ..integrations.clipstyler import network as networks

    size = STYLE_SIZE if options.size is None else options.size
    check_side(size)
    device = choose_device(options.device)
    network, network_metadata = networks.load(options.apply)
    network.to(device)
    code = 0
    for photo, path in zip(photos, outputs, strict=True):
        try:
            image, alpha = _read(photo, size)
        except ClipagError as error:
            code = _skipped(error, photos)
            continue
        repainted = clipstyler.apply(network, image.to(device))
        metadata = {
            **network_metadata,
            "photo": photo.name,
            "network": options.apply.name,
            "Software": "clipag-plugins",
        }
        _save(repainted, alpha, path, metadata)
    return code


def _text(options: argparse.Namespace, text: str, images: Sequence[str]) -> str:
    """Return the style with its prefix; raise ClipagError if it is missing or a photo."""
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
    """Return the photos and where each is written, after checking that this is possible."""
    inputs = [Path(image) for image in images]
    photos = [
        photo for path in inputs for photo in (_pictures_in(path) if path.is_dir() else [path])
    ]
    out: Path | None = options.out
    companions = recording_files(options, len(photos))
    if len(inputs) == 1 and not inputs[0].is_dir():
        picture = (f"{inputs[0].stem} {style}", options.seed)
        sources = [*photos, options.mask or ""]
        outputs = output_paths([picture], out, ".png", sources, companions)
    elif out is None or (out.suffix.lower() == ".png" and not out.is_dir()):
        raise ClipagError(f"--out must name a folder for {len(photos)} pictures.")
    else:
        require_writable_or_creatable(out)
        outputs = []
        for photo in photos:
            outputs.append(free_path(out, photo.stem, ".png", companions, outputs))
    return photos, outputs


def _pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder in the order of their names."""
    from PIL import Image

    if not folder.is_dir():
        raise ClipagError(f"There is no folder {folder}: name one with photos.")
    suffixes = Image.registered_extensions()
    pictures = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )
    if not pictures:
        raise ClipagError(f"There is no picture in {folder}: name a folder with photos.")
    return pictures


def _losses(options: argparse.Namespace) -> "Losses":
    from ..integrations.clipstyler import Losses

    names = ("strength", "patches", "threshold", "whole", "content", "content_weight", "tv",
             "templates")  # fmt: skip
    return Losses(**{name: getattr(options, name) for name in names})


def _report_content(losses: "Losses", model: str) -> None:
    """Say on stderr which network's features were compared with those of the photo."""
    if losses.content_weight:
        network = f"{model}'s own" if losses.content == "clip" else f"{losses.content}'s"
        print(f"clipag: the content was compared by {network} features.", file=sys.stderr)


def _readable(photos: Sequence[Path]) -> list[Path]:
    """Return the photos that can be read, so that a training does not stop at a bad one."""
    from ..pictures import read_picture

    readable = []
    for photo in photos:
        try:
            read_picture(photo)
        except ClipagError as error:
            _skipped(error, photos)
        else:
            readable.append(photo)
    return readable


def _read(photo: Path, size: int) -> "tuple[Tensor, Image.Image | None]":
    """Return a photo as (3, H, W) with the longer side at most `size`, and its alpha if any."""
    from ..integrations.clipstyler.styling import check_sides
    from ..pictures import from_pil, on_white, read_rgba

    picture = read_rgba(photo, still=True)
    scale = min(1.0, size / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    alpha = picture.getchannel("A").resize((width, height))
    is_transparent = alpha.getextrema() != (255, 255)
    image = from_pil(on_white(picture), (width, height))
    check_sides(image[None])
    return image, alpha if is_transparent else None


def _save(
    image: "Tensor", alpha: "Image.Image | None", path: Path, metadata: Mapping[str, object]
) -> None:
    from ..pictures import save_png, to_pil

    picture = to_pil(image)
    if alpha is not None:
        picture.putalpha(alpha)
    save_png(picture, path, metadata)
    print(path)


def _skipped(error: ClipagError, photos: Sequence[Path]) -> int:
    """Report a skipped photo and return the exit code; raise if there is no other photo."""
    if len(photos) == 1:
        raise error
    print(f"clipag: {error}", file=sys.stderr)
    return 2
