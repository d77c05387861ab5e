"""`clipag invert`, `interpolate` and `edit`: pictures of image embeddings."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..defaults import (
    BETWEEN,
    BLUR,
    CANVASES,
    DRAWING_MODEL,
    INVERSION_CLOSENESS,
    PATH_CLOSENESS,
    SIDE,
    STRENGTHS,
)
from ..errors import ClipagError
from .host import guiding_model, watched
from .options import (
    Commands,
    add_computing,
    add_model,
    add_out,
    add_recording,
    add_seed,
    command,
    exit_code,
    model_metadata,
    need_target,
    new_trajectory,
    output_paths,
    recording_files,
    run_options,
    save_trajectory,
    size_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..ascent import Ascent
    from ..base import ClipagModel
    from ..inversion import Inversion

PATH_MILLISECONDS = 160  # a frame of an animation between pictures

INVERT_EXAMPLES = """\
examples:
  clipag invert cat.jpg                            what the model keeps of a picture
  clipag invert cat.jpg --model clip-lite          what its vanilla twin keeps
  clipag invert cat.jpg --count 8 --out cats/      variations: one embedding, eight starts
  clipag invert cat.jpg --count 4 --closeness 0.5 --out cats/    variations that stay closer
  clipag invert cat.jpg --closeness 1 --blur 0.05  start from the blurred picture
  clipag invert embeddings.npy --out pictures/     embeddings (D,) or (B, D), .npy or .safetensors
"""
INTERPOLATE_EXAMPLES = """\
examples:
  clipag interpolate cat.jpg dog.jpg               a strip and an animation
  clipag interpolate cat.jpg dog.jpg bear.jpg cat.jpg --between 3 --out animals.png
  clipag interpolate cat.jpg dog.jpg --closeness 0 --init noise
"""
EDIT_EXAMPLES = """\
examples:
  clipag edit cat.jpg "a cat" "a lion"             a strip of growing strength and an animation
  clipag edit apple.png "a red apple" "a green apple" --strengths 0.5 --out green.png
  clipag edit house.png "a house in summer" "a house in winter" --strengths 0 0.25 0.5
"""


def add(commands: Commands) -> None:
    """Describe `clipag invert`, `clipag interpolate` and `clipag edit`."""
    invert = command(
        commands, "invert", "draw a picture anew from its embedding; variations", INVERT_EXAMPLES
    )
    invert.set_defaults(run=_invert)
    invert.add_argument(
        "pictures", nargs="+", metavar="IMAGE", help="pictures, or files of embeddings"
    )
    invert.add_argument(
        "--count", type=int, default=1, help="pictures of each: SEED, SEED + 1, … (default: 1)"
    )
    add_inversion_options(invert, INVERSION_CLOSENESS)
    invert.set_defaults(model=DRAWING_MODEL)
    add_recording(invert)
    add_out(invert, "a .png for one picture", "invert-IMAGE-SEED.png")

    interpolate = command(
        commands, "interpolate", "draw what lies between pictures", INTERPOLATE_EXAMPLES
    )
    interpolate.set_defaults(run=_interpolate)
    interpolate.add_argument("pictures", nargs="+", metavar="IMAGE", help="two pictures or more")
    interpolate.add_argument(
        "--between",
        type=int,
        default=BETWEEN,
        help="pictures between two neighbours (default: %(default)s)",
    )
    add_inversion_options(interpolate, PATH_CLOSENESS)
    add_out(interpolate, "a .png beside which a .gif is written", "interpolate-IMAGE-SEED.png")

    edit = command(commands, "edit", "change a picture from one text to another", EDIT_EXAMPLES)
    edit.set_defaults(run=_edit)
    edit.add_argument("picture", metavar="IMAGE", help="a picture")
    edit.add_argument("source_text", metavar="FROM", help="what the picture shows")
    edit.add_argument("text", metavar="TO", help="what it should show")
    edit.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        default=list(STRENGTHS),
        metavar="SHARE",
        help="from 0 (the picture) to 1 (the change alone); each gives a picture of the strip "
        f"(default: {' '.join(f'{strength:g}' for strength in STRENGTHS)})",
    )
    edit.add_argument("--truncate", action="store_true", help="cut texts of more than 77 tokens")
    add_inversion_options(edit, PATH_CLOSENESS)
    add_out(edit, "a .png beside which a .gif is written", "edit-IMAGE-SEED.png")


def add_inversion_options(
    parser: argparse.ArgumentParser, closeness: float, has_model: bool = True
) -> None:
    """Add the options that say how embeddings become pictures."""
    add = parser.add_argument
    add(
        "--init",
        default="gmm",
        metavar="gmm|noise|IMAGE|MIXTURE",
        help="what a start is drawn from (default: %(default)s)",
    )
    add(
        "--closeness",
        type=float,
        default=closeness,
        metavar="SHARE",
        help="share of the blurred picture in the start: 0 is none, 1 the blurred picture alone "
        "(default: %(default)s)",
    )
    add(
        "--blur",
        type=float,
        default=BLUR,
        metavar="SHARE",
        help="deviation of the blur as a share of the side (default: %(default)s)",
    )
    add("--size", type=int, default=SIDE, help="side of a picture in pixels (default: %(default)s)")
    for name in ("steps", "views", "tries"):
        help = "updates" if name == "steps" else f"{name}, as for clipag generate"
        add(f"--{name}", type=int, help=f"{help} (default: what suits the model)")
    add(
        "--canvas",
        choices=CANVASES,
        default=CANVASES[0],
        help="what is changed, as for clipag generate (default: what suits the model)",
    )
    if has_model:
        add_model(parser)
    add_seed(parser)
    add_computing(parser)


def inversion(options: argparse.Namespace, count: int = 1) -> "Inversion":
    """Return the options of `add_inversion_options` as the library takes them."""
    from ..inversion import Inversion

    return Inversion(
        options.init,
        options.closeness,
        options.blur,
        range(options.seed, options.seed + count),
        options.size,
        options.steps,
        options.views,
        options.tries,
        options.canvas,
    )


def _invert(options: argparse.Namespace) -> int:
    if options.count < 1:
        raise ClipagError(f"--count is {options.count}: draw at least 1 picture of each.")
    names, embeddings = _names_and_embeddings(options.pictures)
    seeds = range(options.seed, options.seed + options.count)
    drawings = [(f"invert {name}", seed) for name in names for seed in seeds]
    companions = recording_files(options, len(drawings))
    outputs = output_paths(drawings, options.out, ".png", _files(options), companions)

    from ..inversion import draw_embeddings, invert
    from ..pictures import save_png, to_pil

    how = inversion(options, options.count)
    model = guiding_model(options, options.model)
    trajectory = new_trajectory(options, how.settings_for(model).steps)
    if embeddings is None:
        ascent = invert(
            options.pictures,
            model,
            how,
            callback=watched(options, trajectory),
            options=run_options(options),
        )
    else:
        ascent = draw_embeddings(
            embeddings,
            model,
            how,
            callback=watched(options, trajectory),
            options=run_options(options),
        )
    metadata = [
        {"inverted": name, "seed": seed, **metadata_of(options, model, how, ascent)}
        for name in names
        for seed in seeds
    ]
    for image, path, each in zip(ascent.images, outputs, metadata, strict=True):
        save_png(to_pil(image), path, each)
        print(path)
    save_trajectory(options, trajectory, ascent, outputs, metadata)
    return exit_code(ascent)


def _names_and_embeddings(pictures: Sequence[str]) -> tuple[list[str], "Tensor | None"]:
    """Return a name for each picture or embedding, and the embeddings of a file of them."""
    from ..latents import EMBEDDING_FILES, read_embeddings

    paths = [Path(picture) for picture in pictures]
    files = [path for path in paths if path.suffix in EMBEDDING_FILES]
    if not files:
        return [path.stem for path in paths], None
    if len(paths) > 1:
        raise ClipagError(f"{files[0]} holds embeddings: name it alone, without other pictures.")
    (path,) = paths
    embeddings = read_embeddings(path)
    if embeddings.ndim < 2:
        return [path.stem], embeddings
    return [f"{path.stem} {number}" for number in range(len(embeddings))], embeddings


def _interpolate(options: argparse.Namespace) -> int:
    stems = " ".join(Path(picture).stem for picture in options.pictures)
    strip, animation = strip_paths(options, f"interpolate {stems}")

    from ..inversion import interpolate

    how = inversion(options)
    model = guiding_model(options, options.model)
    ascent = interpolate(
        options.pictures, model, how, between=options.between, options=run_options(options)
    )
    metadata = {
        "interpolated": ", ".join(options.pictures),
        "between": options.between,
        "seed": options.seed,
        **metadata_of(options, model, how, ascent),
    }
    save_strip(ascent, strip, animation, metadata)
    return exit_code(ascent)


def _edit(options: argparse.Namespace) -> int:
    strip, animation = strip_paths(options, f"edit {Path(options.picture).stem} {options.text}")

    from ..inversion import edit

    how = inversion(options)
    model = guiding_model(options, options.model)
    ascent = edit(
        options.picture,
        (options.source_text, options.text),
        model,
        how,
        strengths=options.strengths,
        options=run_options(options),
    )
    metadata = {
        "edited": options.picture,
        "from": options.source_text,
        "to": options.text,
        "strengths": " ".join(f"{strength:g}" for strength in options.strengths),
        "seed": options.seed,
        **metadata_of(options, model, how, ascent),
    }
    save_strip(ascent, strip, animation, metadata)
    return exit_code(ascent)


def _files(options: argparse.Namespace) -> list[str]:
    """Return the files that the pictures are made from."""
    pictures = [options.picture] if "picture" in options else options.pictures
    return [*pictures, options.init]


def strip_paths(options: argparse.Namespace, name: str) -> tuple[Path, Path]:
    """Return where the strip and the animation are written."""
    drawing = (name, options.seed)
    (strip,) = output_paths([drawing], options.out, ".png", _files(options), [(None, ".gif")])
    animation = strip.with_suffix(".gif")
    need_target(animation, _files(options))
    return strip, animation


def metadata_of(
    options: argparse.Namespace, model: "ClipagModel", how: "Inversion", ascent: "Ascent"
) -> dict[str, object]:
    """Return the part of a picture's metadata that `add_inversion_options` and the model give."""
    settings = how.settings_for(model)
    return {
        "size": size_of(ascent.images),
        "steps": ascent.steps,
        "views": settings.views.count,
        "init": options.init,
        "closeness": options.closeness,
        "blur": options.blur,
        "tries": settings.tries,
        "canvas": options.canvas,
        **model_metadata(model, options.precision),
    }


def save_strip(
    ascent: "Ascent", strip_path: Path, animation: Path, metadata: Mapping[str, object]
) -> None:
    """Write the pictures side by side and, if there are several, as an animation to and fro."""
    from ..pictures import save_png, to_pil
    from ..sheet import strip
    from ..trajectory import save_gif

    pictures = [to_pil(image) for image in ascent.images]
    save_png(strip(pictures), strip_path, metadata)
    print(strip_path)
    if len(pictures) > 1:
        save_gif([*pictures, *pictures[-2:0:-1]], animation, PATH_MILLISECONDS)
        print(animation)
