"""clipag generate: pixels, by ascent alone."""

import argparse

from .options import (
    Commands,
    add_picture_options,
    choose_device,
    command,
    exit_code,
    model_metadata,
    new_trajectory,
    plan,
    prefixed,
    run_options,
    save_trajectory,
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
        help="starts for each picture, of which the best result is kept (default: what suits the "
        "model)",
    )


def _run(options: argparse.Namespace) -> int:
    seeds, pictures, outputs = plan(options, ".png")

    from ..hub import load_model
    from ..pictures import save_png, to_pil
    from ..sampler import sample, settings_for

    model = load_model(options.model, choose_device(options.device))
    settings = settings_for(model)
    steps = settings.steps if options.steps is None else options.steps
    tries = settings.tries_of(options.tries, options.init)
    trajectory = new_trajectory(options, steps)
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
    metadata = [
        {
            "prompt": prefixed(options, prompt),
            "seed": seed,
            "size": options.size,
            "steps": ascent.steps,
            "views": settings.views_of(options.views).count,
            "init": options.init,
            "tries": tries,
            **model_metadata(model, options.precision),
        }
        for prompt, seed in pictures
    ]
    for image, path, each in zip(ascent.images, outputs, metadata, strict=True):
        save_png(to_pil(image), path, each)
        print(path)
    save_trajectory(options, trajectory, ascent, outputs, metadata)
    return exit_code(ascent)
