"""clipag draw: CLIPDraw's strokes."""

import argparse

from .options import (
    Commands,
    add_picture_options,
    choose_device,
    code_of,
    command,
    made_by,
    need_target,
    plan,
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
    add("--steps", type=int, default=250, help="updates (default: %(default)s)")
    add("--strokes", type=int, default=256, help="paths of a drawing (default: %(default)s)")
    add(
        "--shapes",
        choices=["stroke", "fill", "pixel"],
        default="stroke",
        help="curves, filled closed curves, or a grid of squares (default: %(default)s)",
    )
    add(
        "--width",
        type=float,
        nargs=2,
        default=(2.0, 100.0),
        metavar=("LEAST", "MOST"),
        help="of strokes, which start with the least, in 224ths of the side (default: 2 100)",
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
        help="look at 4 random views, not at the drawing itself (default: --augment)",
    )
    add(
        "--init",
        default="random",
        metavar="random|IMAGE",
        help="where to start: from a picture, strokes have its colours (default: %(default)s)",
    )


def _run(options: argparse.Namespace) -> int:
    seeds, drawn, outputs = plan(options, ".svg")
    for path in outputs:
        need_target(path.with_suffix(".png"), [options.init])

    import torch

    from ..hub import load_model
    from ..integrations import clipdraw
    from ..integrations.vector.svg import write_svg
    from ..pictures import save_png, to_pil
    from ..trajectory import Trajectory, save_gif

    model = load_model(options.model, choose_device(options.device))
    trajectory = Trajectory(options.steps) if options.trajectory is not None else None
    canvas, ascent = clipdraw.draw(
        options.prompts,
        model,
        strokes=options.strokes,
        steps=options.steps,
        seed=seeds,
        size=options.size,
        negative=options.negative,
        augment=options.augment,
        init=options.init,
        shapes=options.shapes,
        width=tuple(options.width),
        palette=options.palette.split(",") if options.palette is not None else (),
        prefix=options.prefix,
        truncate=options.truncate,
        precision=options.precision,
        max_views=options.max_views,
        compile=options.compile,
        callback=trajectory,
    )
    with torch.no_grad():
        images = canvas.render()
    facts = [
        {
            "prompt": f"{options.prefix} {prompt}".strip(),
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
            **made_by(model, options.precision),
        }
        for prompt, seed in drawn
    ]
    for number, (path, own) in enumerate(zip(outputs, facts, strict=True)):
        groups, size = canvas.groups(number), (options.size, options.size)
        write_svg(path, groups, size, background=torch.ones(3), facts=own)
        print(path)
        save_png(to_pil(images[number]), path.with_suffix(".png"), own)
        print(path.with_suffix(".png"))
    if trajectory is not None:
        for path in trajectory.save(options.trajectory, images, outputs, facts):
            print(path)
        for output, frames in zip(outputs, clipdraw.stroke_by_stroke(canvas), strict=True):
            path = options.trajectory / f"{output.stem}-strokes.gif"
            save_gif(frames, path)
            print(path)
    return code_of(ascent)
