"""clipag draw: CLIPDraw's strokes."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..defaults import DRAWING_MODEL, SHAPES, STROKE_STEPS, STROKE_WIDTH, STROKES
from .host import guiding_model, watched
from .options import (
    Commands,
    add_picture_options,
    command,
    exit_code,
    model_metadata,
    need_target,
    new_trajectory,
    plan,
    prefixed,
    run_options,
    save_trajectory,
    size_of,
)

if TYPE_CHECKING:
    from ..ascent import Ascent
    from ..integrations.clipdraw import StrokeCanvas

EXAMPLES = """\
examples:
  clipag draw "a red apple"                                    a-red-apple-0.svg and .png
  clipag draw "a castle" "a rocket" --count 3 --out drawings/
  clipag draw "a fox" --strokes 64 --width 4 12 --palette black,e63946,f1faee
  clipag draw "a sailboat" --init photo.jpg --negative "a messy sketch" --trajectory steps/
  clipag draw "a ship" --size 320 192 --background none        transparent
  clipag draw "a snail" --video snail.mp4                      a film, a frame a step
  clipag draw "a violin" --model clip-mini --no-augment        the vanilla twin, unaugmented
"""


def add(commands: Commands) -> None:
    """Describe `clipag draw`."""
    draw = command(commands, "draw", "draw a prompt with strokes, as SVG (CLIPDraw)", EXAMPLES)
    draw.set_defaults(run=_run)
    add_picture_options(draw, suffix=".svg")
    draw.set_defaults(model=DRAWING_MODEL)
    add = draw.add_argument
    add("--steps", type=int, default=STROKE_STEPS, help="updates (default: %(default)s)")
    add("--strokes", type=int, default=STROKES, help="paths of a drawing (default: %(default)s)")
    add(
        "--shapes",
        choices=SHAPES,
        default=SHAPES[0],
        help="curves, filled closed curves, or a grid of squares (default: %(default)s)",
    )
    add(
        "--width",
        type=float,
        nargs=2,
        default=STROKE_WIDTH,
        metavar=("LEAST", "MOST"),
        help="width of strokes, which start with the least, in 224ths of the side (default: "
        "{:g} {:g})".format(*STROKE_WIDTH),
    )
    add("--palette", metavar="COLOUR,…", help="the only colours to use, as e63946 or by name")
    add(
        "--negative",
        action="append",
        default=[],
        metavar="PROMPT",
        help="what it should not look like; may be given several times",
    )
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="guide by 4 random views instead of the drawing itself (default: --augment)",
    )
    add(
        "--init",
        default="random",
        metavar="random|IMAGE",
        help="where to start: strokes take their colours from a picture (default: %(default)s)",
    )
    add(
        "--background",
        default="white",
        metavar="COLOUR|none",
        help="the paper, as e63946 or by name, or none for transparent SVG and PNG (default: "
        "%(default)s)",
    )


def _run(options: argparse.Namespace) -> int:
    seeds, pictures, outputs = plan(options, ".svg", ".png")
    if options.out in outputs:
        _check_png_beside(options)

    from ..integrations import clipdraw

    drawing = clipdraw.Drawing(
        options.strokes,
        options.shapes,
        tuple(options.width),
        options.palette.split(",") if options.palette is not None else (),
        options.init,
        options.background,
    )
    model = guiding_model(options, options.model)
    trajectory = new_trajectory(options, options.steps)
    ascent = clipdraw.draw(
        [prefixed(options, prompt) for prompt in options.prompts],
        model,
        steps=options.steps,
        seed=seeds,
        size=options.size,
        drawing=drawing,
        negative=options.negative,
        augment=options.augment,
        callback=watched(options, trajectory),
        options=run_options(options),
    )
    metadata = [
        _metadata(options, prompt, seed, ascent)
        | model_metadata(model, options.precision, options.prior)
        for prompt, seed in pictures
    ]
    canvas = cast("clipdraw.StrokeCanvas", ascent.canvas)
    _save(ascent, canvas, outputs, metadata)
    save_trajectory(options, trajectory, ascent, outputs, metadata)
    if options.trajectory is not None:
        _save_stroke_by_stroke(canvas, options.trajectory, outputs)
    return exit_code(ascent)


def _check_png_beside(options: argparse.Namespace) -> None:
    """Refuse to replace --init, and say so if another PNG beside --out is replaced."""
    png = options.out.with_suffix(".png")
    need_target(png, [options.init])
    if os.path.lexists(png):
        print(f"clipag: {png} is replaced, as well as {options.out}.", file=sys.stderr)


def _metadata(
    options: argparse.Namespace, prompt: str, seed: int, ascent: "Ascent"
) -> dict[str, object]:
    """Return what a drawing says about itself, except for its model."""
    background = {} if options.background == "white" else {"background": options.background}
    return {
        "prompt": prefixed(options, prompt),
        "negative": "; ".join(options.negative) or "none",
        "seed": seed,
        "size": size_of(ascent.images),
        "steps": ascent.steps,
        "strokes": options.strokes,
        "shapes": options.shapes,
        "width": "{:g} {:g}".format(*options.width),
        "palette": options.palette or "any",
        "views": "augmented" if options.augment else "the drawing itself",
        "init": options.init,
        **background,
    }


def _save(
    ascent: "Ascent",
    canvas: "StrokeCanvas",
    outputs: Sequence[Path],
    metadata: Sequence[Mapping[str, object]],
) -> None:
    """Write every drawing as SVG and as PNG."""
    from ..integrations.vector.svg import write_svg
    from ..pictures import save_png, to_pil

    background = canvas.drawing.background_colour()
    images = ascent.images if background is not None else canvas.render_transparent()
    for number, (path, each) in enumerate(zip(outputs, metadata, strict=True)):
        size = (canvas.height, canvas.width)
        write_svg(path, canvas.groups(number), size, background=background, metadata=each)
        print(path)
        save_png(to_pil(images[number]), path.with_suffix(".png"), each)
        print(path.with_suffix(".png"))


def _save_stroke_by_stroke(canvas: "StrokeCanvas", folder: Path, outputs: Sequence[Path]) -> None:
    """Write an animation of every drawing in which its paths appear one after another."""
    from ..integrations.clipdraw import stroke_by_stroke
    from ..trajectory import save_gif

    for output, frames in zip(outputs, stroke_by_stroke(canvas), strict=True):
        path = folder / f"{output.stem}-strokes.gif"
        save_gif(frames, path)
        print(path)
