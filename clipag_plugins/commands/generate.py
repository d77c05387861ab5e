"""clipag generate: pixels, by ascent alone."""

import argparse

from ..defaults import CANVASES, DRAWING_MODEL
from .canvas_options import add_mask, check_mask
from .host import guiding_model, previewed, watched
from .options import (
    Commands,
    add_picture_options,
    command,
    exit_code,
    model_metadata,
    new_trajectory,
    plan,
    prefixed,
    run_options,
    save_trajectory,
    size_of,
)

EXAMPLES = """\
examples:
  clipag generate "a red apple"
  clipag generate "a castle" "a rocket" --seed 3 --out pictures/
  clipag generate "a snail" --count 8 --out pictures/          seeds 0 to 7, one batch
  clipag generate "a fox" --prefix "oil painting of" --trajectory steps/
  clipag generate "a sailboat" --model clipag-mini             a sketch, in a tenth of the time
  clipag generate "a sailboat" --model clip-lite --views 1     the vanilla twin, unaugmented
  clipag generate "a violin" --model CLIPAG_ViTB32.pt          the authors' weights
  clipag generate "a violin" --model ViT-B/32 --with FARE4-ViT-B/16    two models guide
  clipag generate "a hat" --init photo.jpg --mask mask.png     only what is white in the mask
  clipag generate "a castle" --canvas pixels                   softer than a pyramid
"""


def add(commands: Commands) -> None:
    """Describe `clipag generate`."""
    generate = command(
        commands, "generate", "draw a prompt by pixel ascent, with no generator", EXAMPLES
    )
    generate.set_defaults(run=_run)
    add_picture_options(generate, suffix=".png")
    # The size is 224, but with --mask that of the picture.
    generate.set_defaults(model=DRAWING_MODEL, size=None)
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
    add_mask(generate)
    add(
        "--tries",
        type=int,
        help="starts for each picture, of which the best result is kept (default: what suits the "
        "model)",
    )
    add(
        "--canvas",
        choices=CANVASES,
        default=CANVASES[0],
        help="what is changed: pixels, a pyramid of resolutions, or a spectrum (default: what "
        "suits the model)",
    )
    add(
        "--with",
        dest="further_models",
        action="append",
        default=[],
        metavar="MODEL",
        help="another model that guides together with --model; may be repeated",
    )


def _run(options: argparse.Namespace) -> int:
    check_mask(options)
    seeds, pictures, outputs = plan(options, ".png")

    from ..masks import Masked
    from ..pictures import save_png, to_pil
    from ..sampler import sample, settings_for

    models = [guiding_model(options, name) for name in (options.model, *options.further_models)]
    init = options.init if options.mask is None else Masked(options.init, options.mask)
    settings = settings_for(
        models[0],
        steps=options.steps,
        views=options.views,
        tries=options.tries,
        canvas=options.canvas,
        init=init,
    )
    trajectory = new_trajectory(options, settings.steps)
    ascent = sample(
        [prefixed(options, prompt) for prompt in options.prompts],
        models,
        settings,
        seed=seeds,
        size=options.size,
        init=init,
        callback=watched(options, trajectory),
        preview=previewed(options),
        options=run_options(options),
    )
    # What only some pictures have is left out of the others.
    more = {"canvas": options.canvas} if options.canvas != CANVASES[0] else {}
    more |= {"mask": options.mask} if options.mask is not None else {}
    metadata = [
        {
            "prompt": prefixed(options, prompt),
            "seed": seed,
            "size": size_of(ascent.images),
            "steps": ascent.steps,
            "views": settings.views.count,
            "init": options.init,
            "tries": settings.tries,
            **more,
            **model_metadata(models[0], options.precision, options.prior),
            "model": " + ".join(model.name for model in models),
        }
        for prompt, seed in pictures
    ]
    for image, path, each in zip(ascent.images, outputs, metadata, strict=True):
        save_png(to_pil(image), path, each)
        print(path)
    save_trajectory(options, trajectory, ascent, outputs, metadata)
    return exit_code(ascent)
