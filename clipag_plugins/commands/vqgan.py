"""clipag vqgan: VQGAN+CLIP."""

import argparse
from pathlib import Path

from ..errors import ClipagError
from ..files import require_writable_or_creatable
from .options import (
    Commands,
    add_run_options,
    choose_device,
    code_of,
    command,
    made_by,
    output_paths,
    seed_number,
)

EXAMPLES = """\
examples:
  clipag vqgan "a green frog"
  clipag vqgan "a castle:1 | blurry:-0.3" --size 320 192 --seed 3      two prompts at once
  clipag vqgan "a caterpillar ^ a butterfly" --frames frames/          a story, every step a picture
  clipag vqgan "a fox" --init photo.jpg --vqgan vqgan_imagenet_f16_16384
  clipag vqgan -p "a fox" -i 300 -s 256 256 -conf m.yaml -ckpt m.ckpt -o fox.png    as generate.py

prompts are text:weight:stop, with | between those drawn at once and ^ between scenes.
"""


def add(commands: Commands) -> None:
    """Describe `clipag vqgan`."""
    vqgan = command(commands, "vqgan", "draw a prompt with a VQGAN (VQGAN+CLIP)", EXAMPLES)
    vqgan.set_defaults(run=_run)
    add = vqgan.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what to draw; several make one picture each")
    add("-p", "--prompts", dest="more", metavar="PROMPT", help="the same, as an option")
    add("-ip", "--image-prompts", "--image_prompts", default="", metavar="IMAGE[:WEIGHT[:STOP]]",
        help="pictures to be similar to, with | between them")  # fmt: skip
    add("-m", "--model", "--clip_model", default="clipag-mini",
        help="what guides: a known CLIP or a weights file (default: %(default)s)")  # fmt: skip
    add("-ckpt", "--vqgan", "--vqgan_checkpoint", default="vqgan-mini", metavar="VQGAN",
        help="what draws: vqgan_imagenet_f16_16384, vqgan_imagenet_f16_1024, gumbel_8192, wikiart, "
        "coco, faceshq, a checkpoint, a folder or OWNER/NAME (default: %(default)s)")  # fmt: skip
    add("-conf", "--vqgan-config", "--vqgan_config", type=Path, metavar="YAML",
        help="the config of a checkpoint (default: the .yaml beside it)")  # fmt: skip
    add("-i", "--steps", "--iterations", type=int, help="updates, over all scenes")
    add(
        "-sd",
        "--seed",
        type=seed_number,
        default=0,
        help="same seed, same picture (default: %(default)s)",
    )
    add("-s", "--size", type=int, nargs="+", default=[224], metavar=("W", "H"),
        help="width and height in pixels, or one for both (default: 224)")  # fmt: skip
    add("-cuts", "--views", "--num_cuts", type=int,
        help="views an update (default: what suits the VQGAN)")  # fmt: skip
    add("-cutm", "--cut-method", "--cut_method", metavar="METHOD",
        help="how views are cut: latest, original, updated, nrupdated, updatedpooling")  # fmt: skip
    add("-cutp", "--cut-power", "--cut_power", type=float, default=1.0,
        help="of random crops: above 1 they are rather small (default: %(default)s)")  # fmt: skip
    add("-aug", "--augments", nargs="+", metavar="NAME",
        help="what latest and nrupdated do to views: Ji Sh Gn Pe Ro Af Et Ts Cr Er Re")  # fmt: skip
    add("-in", "-ii", "--init", "--init_noise", "--init_image",
        metavar="gmm|noise|pixels|gradient|IMAGE",
        help="where to start (default: what suits the VQGAN)")  # fmt: skip
    add("-lr", "--rate", "--learning_rate", type=float,
        help="learning rate (default: what suits the VQGAN)")  # fmt: skip
    add("-cpe", "--change-every", "--change_prompt_every", type=int, metavar="STEPS",
        help="length of a scene, around and around (default: all last equally long)")  # fmt: skip
    add_run_options(vqgan)
    add(
        "--frames", type=Path, metavar="DIR", help="write every step as a numbered PNG, for a video"
    )
    add("-vid", "--video", dest="frames", action="store_const", const=Path("steps"),
        help="the same as --frames steps")  # fmt: skip
    add("-o", "--out", "--output", type=Path,
        help="a .png for one prompt, a folder for several (default: PROMPT-SEED.png)")  # fmt: skip


def _run(options: argparse.Namespace) -> int:
    prompts = [*options.prompts, *([] if options.more is None else [options.more])]
    if not prompts and not options.image_prompts:
        raise ClipagError("There is no prompt: say what to draw.")
    prompts = prompts or [""]
    if len(options.size) > 2:
        raise ClipagError(f"--size has {len(options.size)} numbers: give width and height.")
    from ..integrations.vqgan.prompts import parse_prompts, parse_scenes

    for prompt in prompts:
        parse_scenes(prompt or options.image_prompts)
    pictures = parse_prompts(options.image_prompts) if options.image_prompts else []
    sources = [picture.text for picture in pictures] + [options.init or ""]
    named = [(prompt, options.seed) for prompt in prompts]
    outputs = output_paths(named, options.out, ".png", sources)
    require_writable_or_creatable(options.trajectory)
    require_writable_or_creatable(options.frames)

    from ..hub import load_model
    from ..integrations import vqgan
    from ..integrations.vqgan.cutouts import Cutouts
    from ..integrations.vqgan.weights import load_vqgan
    from ..pictures import save_png, to_pil
    from ..trajectory import Frames, Trajectory

    drawing = load_vqgan(options.vqgan, options.vqgan_config)
    settings = vqgan.settings_for(drawing)
    init = settings.init if options.init is None else options.init
    rate = settings.rate if options.rate is None else options.rate
    chosen = {
        "count": settings.views if options.views is None else options.views,
        "method": options.cut_method,
        "augments": options.augments,
        "power": options.cut_power,
    }
    views = Cutouts(**{name: value for name, value in chosen.items() if value is not None})
    model = load_model(options.model, choose_device(options.device))
    steps = vqgan.STEPS if options.steps is None else options.steps
    for prompt, path in zip(prompts, outputs, strict=True):
        every = {
            "prompt": prompt,
            "image prompts": options.image_prompts,
            "prefix": options.prefix,
            "seed": options.seed,
            "size": f"{options.size[0]} {options.size[-1]}",
            "vqgan": options.vqgan,
            "views": views,
            "init": init,
            "rate": rate,
            "change every": options.change_every,
            **made_by(model, options.precision),
        }
        facts = {key: value for key, value in every.items() if value not in ("", None)}
        trajectory = None if options.trajectory is None else Trajectory(steps)
        frames = None if options.frames is None else Frames(options.frames, path.stem, facts)
        callbacks = [callback for callback in (trajectory, frames) if callback is not None]
        ascent = vqgan.draw(
            prompt,
            model,
            drawing,
            image_prompts=options.image_prompts,
            steps=steps,
            seed=options.seed,
            size=(options.size[0], options.size[-1]),
            views=views,
            init=init,
            rate=rate,
            change_every=options.change_every,
            prefix=options.prefix,
            truncate=options.truncate,
            precision=options.precision,
            max_views=options.max_views,
            callbacks=callbacks,
        )
        facts["steps"] = ascent.steps
        save_png(to_pil(ascent.images[0]), path, facts)
        print(path)
        if trajectory is not None:
            for written in trajectory.save(options.trajectory, ascent.images, [path], [facts]):
                print(written)
        if ascent.interrupted:
            return code_of(ascent)
    return 0
