"""clipag generate: pixels, by ascent alone."""

import argparse

from .options import (
    Commands,
    add_picture_options,
    choose_device,
    code_of,
    command,
    made_by,
    plan,
    prefixed,
    run_options,
)

EXAMPLES = """\
examples:
  clipag generate "a red apple"
  clipag generate "a castle" "a rocket" --seed 3 --out pictures/
  clipag generate "a snail" --count 8 --out pictures/          seeds 0 to 7, one batch
  clipag generate "a fox" --prefix "oil painting of" --trajectory steps/
  clipag generate "a sailboat" --model clip-mini --views 1     the vanilla twin, unaugmented
  clipag generate "a violin" --model CLIPAG_ViTB32.pt          the authors' weights
"""


def add(commands: Commands) -> None:
    """Describe `clipag generate`."""
    generate = command(
        commands, "generate", "draw a prompt by pixel ascent, with no generator", EXAMPLES
    )
    generate.set_defaults(run=_run)
    add_picture_options(generate, suffix=".png")
    add = generate.add_argument
    add("--steps", type=int, help="updates (default: what suits the model)")
    add(
        "--views",
        type=int,
        help="views an update; 1 is no augmentation (default: what suits the model)",
    )
    add(
        "--init",
        default="gmm",
        metavar="gmm|noise|IMAGE|MIXTURE",
        help="where to start (default: %(default)s)",
    )
    add(
        "--tries",
        type=int,
        help="starts a picture, of which the best outcome is kept (default: what suits the model)",
    )


def _run(options: argparse.Namespace) -> int:
    seeds, drawn, outputs = plan(options, ".png")

    from ..hub import load_model
    from ..pictures import save_png, to_pil
    from ..sampler import sample, settings_for
    from ..trajectory import Trajectory

    model = load_model(options.model, choose_device(options.device))
    settings = settings_for(model)
    steps = settings.steps if options.steps is None else options.steps
    tries = settings.tries_of(options.tries, options.init)
    trajectory = Trajectory(steps) if options.trajectory is not None else None
    ascent = sample(
        [prefixed(options, prompt) for prompt in options.prompts],
        model,
        steps=steps,
        seed=seeds,
        size=options.size,
        views=options.views,
        init=options.init,
        tries=tries,
        callback=trajectory,
        options=run_options(options),
    )
    facts = [
        {
            "prompt": prefixed(options, prompt),
            "seed": seed,
            "size": options.size,
            "steps": ascent.steps,
            "views": settings.views_of(options.views).count,
            "init": options.init,
            "tries": tries,
            **made_by(model, options.precision),
        }
        for prompt, seed in drawn
    ]
    for image, path, own in zip(ascent.images, outputs, facts, strict=True):
        save_png(to_pil(image), path, own)
        print(path)
    if trajectory is not None:
        images = ascent.images
        for path in trajectory.save(options.trajectory, images, outputs, facts, ascent.rows):
            print(path)
    return code_of(ascent)
