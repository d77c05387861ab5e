"""clipag vqgan: VQGAN+CLIP."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import width_and_height
from ..defaults import (
    CUT_AUGMENTS,
    CUT_METHODS,
    CUT_POWER,
    DRAWING_MODEL,
    PUBLIC_VQGANS,
    SIDE,
    VQGAN,
    VQGAN_STEPS,
)
from ..errors import ClipagError
from ..files import require_writable_or_creatable
from .canvas_options import add_mask, add_size, check_mask
from .host import guiding_model, watched
from .options import (
    Commands,
    add_model,
    add_out,
    add_run_options,
    add_seed,
    command,
    exit_code,
    model_metadata,
    new_trajectory,
    output_paths,
    recording_files,
    run_options,
    save_trajectory,
)

if TYPE_CHECKING:
    from PIL import Image

    from ..integrations.vqgan import VqganSettings
    from ..masks import Masked

# Where generate.py's -vid, or --video without a name, writes the frames.
FRAMES = Path("steps")
# Options that are not called like the arguments of `Cutouts`.
OPTION_NAMES = {"count": "--views", "method": "--cut-method", "power": "--cut-power"}
EXAMPLES = """\
examples:
  clipag vqgan "a green frog"
  clipag vqgan "a castle:1 | blurry:-0.3" --size 320 192 --seed 3      two prompts at once
  clipag vqgan "a caterpillar ^ a butterfly" --frames frames/          a story, every step a picture
  clipag vqgan "a fox" --init photo.jpg --vqgan vqgan_imagenet_f16_16384
  clipag vqgan -p "a fox" -i 300 -s 256 256 -conf m.yaml -ckpt m.ckpt -o fox.png    as generate.py

prompts are text:weight:stop, with | between those drawn at once and ^ between scenes. A colon
that no number follows is text; a colon at the end makes all of a prompt text.
"""


def add(commands: Commands) -> None:
    """Describe `clipag vqgan`, whose options have the names of generate.py as aliases."""
    vqgan = command(commands, "vqgan", "draw a prompt with a VQGAN (VQGAN+CLIP)", EXAMPLES)
    vqgan.set_defaults(run=_run, option_names=OPTION_NAMES)
    add = vqgan.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="what to draw; several make one picture each")
    add("-p", "--prompts", dest="more", metavar="PROMPT", help="the same, as an option")
    add("-ip", "--image-prompts", "--image_prompts", default="", metavar="IMAGE[:WEIGHT[:STOP]]",
        help="pictures that it should look like, with | between them")  # fmt: skip
    add_model(vqgan, "-m", "--clip_model")
    add("-ckpt", "--vqgan", "--vqgan_checkpoint", default=VQGAN, metavar="VQGAN",
        help=f"the VQGAN that draws: {', '.join(PUBLIC_VQGANS)}, a checkpoint, a folder or "
        "OWNER/NAME (default: %(default)s)")  # fmt: skip
    add("-conf", "--vqgan-config", "--vqgan_config", type=Path, metavar="YAML",
        help="the config of a checkpoint (default: the .yaml beside it)")  # fmt: skip
    add("-i", "--steps", "--iterations", type=int, default=VQGAN_STEPS,
        help="updates, over all scenes (default: %(default)s)")  # fmt: skip
    add_seed(vqgan, "-sd")
    add_size(vqgan, "-s")
    # The size is 224, but with --mask that of the picture.
    vqgan.set_defaults(model=DRAWING_MODEL, size=None)
    add("-cuts", "--views", "--num_cuts", type=int,
        help="views an update (default: what suits the VQGAN)")  # fmt: skip
    add("-cutm", "--cut-method", "--cut_method", metavar="METHOD",
        help=f"how views are cut: {', '.join(CUT_METHODS)} (default: {CUT_METHODS[0]})",
    )  # fmt: skip
    add("-cutp", "--cut-power", "--cut_power", type=float, default=CUT_POWER,
        help="exponent of the size of random crops: above 1 small crops are more frequent "
        "(default: %(default)s)")  # fmt: skip
    add("-aug", "--augments", nargs="+", metavar="NAME",
        help=f"augmentations of latest and nrupdated, in order: {' '.join(CUT_AUGMENTS)}",
    )  # fmt: skip
    add("-in", "-ii", "--init", "--init_noise", "--init_image",
        metavar="gmm|noise|pixels|gradient|IMAGE",
        help="where to start (default: what suits the VQGAN)")  # fmt: skip
    add("-lr", "--rate", "--learning_rate", type=float,
        help="learning rate (default: what suits the VQGAN)")  # fmt: skip
    add("-cpe", "--change-every", "--change_prompt_every", type=int, metavar="STEPS",
        help="steps of a scene; after the last scene the first follows again (default: the steps "
        "are divided equally)")  # fmt: skip
    add_mask(vqgan)
    add_run_options(vqgan, has_bare_video=True)
    add("--frames", type=Path, metavar="DIR",
        help="write every step as a numbered PNG, and say how ffmpeg joins them")  # fmt: skip
    add("-vid", dest="video", action="store_const", const=True,
        help=f"the same as --frames {FRAMES}")  # fmt: skip
    add_out(vqgan, "a .png for one prompt", "PROMPT-SEED.png", "-o", "--output")


def _run(options: argparse.Namespace) -> int:
    if options.video is True:
        options.video, options.frames = None, options.frames or FRAMES
    prompts = [*options.prompts, *([] if options.more is None else [options.more])]
    if not prompts and not options.image_prompts:
        is_taken = options.video is not None and not options.video.suffix
        hint = f"; {str(options.video)!r} was taken for the name of a film" if is_taken else ""
        raise ClipagError(f"There is no prompt: say what to draw{hint}.")
    prompts = prompts or [""]
    outputs = _outputs(options, prompts)

    from ..integrations import vqgan
    from ..integrations.vqgan.prompts import parse_scenes, with_prefix
    from ..pictures import save_png, to_pil
    from ..trajectory import Frames

    generator = vqgan.load_vqgan(options.vqgan, options.vqgan_config)
    settings = _settings(options, vqgan.settings_for(generator))
    size = _size(options)
    model = guiding_model(options, options.model)
    for prompt, path in zip(prompts, outputs, strict=True):
        metadata = _metadata(options, prompt, settings, size)
        metadata |= model_metadata(model, options.precision, options.prior)
        trajectory = new_trajectory(options, options.steps)
        frames = None if options.frames is None else Frames(options.frames, path.stem, metadata)
        ascent = vqgan.draw(
            with_prefix(parse_scenes(prompt), options.prefix) if prompt else "",
            model,
            generator,
            image_prompts=options.image_prompts,
            steps=options.steps,
            seed=options.seed,
            size=size,
            settings=settings,
            callback=watched(options, trajectory, frames),
            options=run_options(options),
        )
        metadata["steps"] = ascent.steps
        save_png(to_pil(ascent.images[0]), path, metadata)
        print(path)
        save_trajectory(options, trajectory, ascent, [path], [metadata])
        if frames is not None:
            print(f"clipag: {frames.how_to_join()}", file=sys.stderr)
        if ascent.interrupted:
            return exit_code(ascent)
    return 0


def _outputs(options: argparse.Namespace, prompts: list[str]) -> list[Path]:
    """Check the prompts and the files, before torch is used, and return where to write."""
    from ..integrations.vqgan.prompts import ambiguities, parse_pictures, parse_scenes

    for prompt in prompts:
        if prompt or not options.image_prompts:
            parse_scenes(prompt)
    image_prompts = parse_pictures(options.image_prompts) if options.image_prompts else []
    check_mask(options)
    sources = [picture.text for picture in image_prompts] + [options.init or "", options.mask or ""]
    pictures = [(prompt, options.seed) for prompt in prompts]
    companions = recording_files(options, len(pictures))
    if options.frames is not None:
        require_writable_or_creatable(options.frames)
        companions.append((options.frames, "-00000.png"))
    outputs = output_paths(pictures, options.out, ".png", sources, companions)
    for sentence in ambiguities(" | ".join(prompts), options.image_prompts):
        print(f"clipag: {sentence}", file=sys.stderr)
    return outputs


def _settings(options: argparse.Namespace, defaults: "VqganSettings") -> "VqganSettings":
    """Return the settings that suit the VQGAN, with what the options change."""
    from ..integrations.vqgan import Cutouts, VqganSettings

    cutouts = {
        "count": defaults.views.count if options.views is None else options.views,
        "method": options.cut_method,
        "augments": options.augments,
        "power": options.cut_power,
    }
    return VqganSettings(
        _init(options, defaults),
        defaults.rate if options.rate is None else options.rate,
        Cutouts(**{name: value for name, value in cutouts.items() if value is not None}),
        options.change_every,
    )


def _size(options: argparse.Namespace) -> tuple[int, int]:
    """Return the width and height of --size, or of the picture behind a mask, or the default."""
    if options.size is not None or options.mask is None:
        return width_and_height(SIDE if options.size is None else options.size)
    from ..pictures import read_picture

    return read_picture(Path(options.init)).size


def _init(
    options: argparse.Namespace, defaults: "VqganSettings"
) -> "str | Path | Image.Image | Masked":
    if options.mask is None:
        return defaults.init if options.init is None else str(options.init)
    from ..masks import Masked

    return Masked(options.init, options.mask)


def _metadata(
    options: argparse.Namespace, prompt: str, settings: "VqganSettings", size: tuple[int, int]
) -> dict[str, object]:
    """Return what a picture says about itself, without empty values."""
    metadata = {
        "prompt": prompt,
        "image prompts": options.image_prompts,
        "prefix": options.prefix,
        "seed": options.seed,
        "size": "{} {}".format(*size),
        "vqgan": options.vqgan,
        "views": settings.views,
        "init": options.init if options.mask is not None else settings.init,
        "mask": options.mask,
        "rate": settings.rate,
        "change every": settings.change_every,
    }
    return {key: value for key, value in metadata.items() if value not in ("", None)}
