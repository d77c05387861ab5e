"""clipag draw: CLIPDraw's strokes."""

import argparse
from typing import cast

from ..defaults import SHAPES, STROKE_STEPS, STROKE_WIDTH, STROKES
from .options import (
    Commands,
    add_picture_options,
    choose_device,
    command,
    exit_code,
    model_metadata,
    need_target,
    new_trajectory,
    plan,
    prefixed,
    run_options,
    save_trajectory,
)

EXAMPLES = """\
examples:
  clipag draw "a red apple"                                    a-red-apple-0.svg and .png
  clipag draw "a castle" "a rocket" --count 3 --out drawings/
  clipag draw "a fox" --strokes 64 --width 4 12 --palette black,e63946,f1faee
  clipag draw "a sailboat" --init photo.jpg --negative "a messy sketch" --trajectory steps/
  clipag draw "a violin" --model clip-mini --no-augment        the vanilla twin, unaugmented
"""


def add(commands: Commands) -> None:
    """Describe `clipag draw`."""
    draw = command(commands, "draw", "draw a prompt with strokes, as SVG (CLIPDraw)", EXAMPLES)
    draw.set_defaults(run=_run)
    add_picture_options(draw, suffix=".svg")
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


def _run(options: argparse.Namespace) -> int:
    seeds, pictures, outputs = plan(options, ".svg")
    for path in outputs:
        need_target(path.with_suffix(".png"), [options.init])

    import torch

    from ..hub import load_model
    from ..integrations import clipdraw
    from ..integrations.vector.svg import write_svg
    from ..pictures import save_png, to_pil
    from ..trajectory import save_gif

    drawing = clipdraw.Drawing(
        options.strokes,
        options.shapes,
        tuple(options.width),
        options.palette.split(",") if options.palette is not None else (),
        options.init,
    )
    model = load_model(options.model, choose_device(options.device))
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
        callback=trajectory,
        options=run_options(options),
    )
    canvas = cast("clipdraw.StrokeCanvas", ascent.canvas)
    metadata = [
        {
            "prompt": prefixed(options, prompt),
            "negative": "; ".join(options.negative) or "none",
            "seed": seed,
            "size": options.size,
            "steps": ascent.steps,
            "strokes": options.strokes,
            "shapes": options.shapes,
            "width": "{:g} {:g}".format(*options.width),
            "palette": options.palette or "any",
            "views": "augmented" if options.augment else "the drawing itself",
            "init": options.init,
            **model_metadata(model, options.precision),
        }
        for prompt, seed in pictures
    ]
    for number, (path, each) in enumerate(zip(outputs, metadata, strict=True)):
        groups, size = canvas.groups(number), (options.size, options.size)
        write_svg(path, groups, size, background=torch.ones(3), metadata=each)
        print(path)
        save_png(to_pil(ascent.images[number]), path.with_suffix(".png"), each)
        print(path.with_suffix(".png"))
    save_trajectory(options, trajectory, ascent, outputs, metadata)
    if trajectory is not None:
        for output, frames in zip(outputs, clipdraw.stroke_by_stroke(canvas), strict=True):
            path = options.trajectory / f"{output.stem}-strokes.gif"
            save_gif(frames, path)
            print(path)
    return exit_code(ascent)
