"""The command line: clipag …"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .errors import ClipagError

EXAMPLES = """\
examples:
  clipag generate "a red apple"
  clipag generate "a castle" "a rocket" --seed 3 --out pictures/
  clipag generate "a fox" --prefix "oil painting of" --trajectory steps/
  clipag generate "a sailboat" --model clip-mini --views 1     the vanilla twin, unaugmented
  clipag generate "a violin" --model CLIPAG_ViTB32.pt          the authors' weights
"""
VQGAN_EXAMPLES = """\
examples:
  clipag vqgan "a green frog"
  clipag vqgan "a castle:1 | blurry:-0.3" --size 320 192 --seed 3      two prompts at once
  clipag vqgan "a caterpillar ^ a butterfly" --frames frames/          a story, every step a picture
  clipag vqgan "a fox" --init photo.jpg --vqgan vqgan_imagenet_f16_16384
  clipag vqgan -p "a fox" -i 300 -s 256 256 -conf m.yaml -ckpt m.ckpt -o fox.png    as generate.py

prompts are text:weight:stop, with | between those drawn at once and ^ between scenes.
"""
RUN_EXAMPLES = """\
examples:
  clipag run generate.py -p "a red apple" -i 100
  clipag run --device cpu train_CLIPstyler.py --text "a watercolor"    where there is no GPU
  clipag run --model CLIPAG_ViTB32.pt generate.py -p "a red apple"     the authors' weights
  clipag run --device cpu CLIP_Patch_Detection.ipynb                   a notebook's code cells

clipag's options stand before SCRIPT; all that follows it is the script's own.
"""
MODELS_EXAMPLES = """\
examples:
  clipag models                            names, sizes, and what needs no download any more
  clipag models ViT-B/32                   where one comes from, its licence, what to cite
"""
PULL_EXAMPLES = """\
examples:
  clipag pull ViT-B/32                     the authors' CLIPAG
  clipag pull FARE4-ViT-B/16               another robust CLIP
  clipag pull laion/CLIP-ViT-B-32-laion2B-s34B-b79K       any OpenCLIP repository of the Hub
"""
CONVERT_EXAMPLES = """\
examples:
  clipag convert CLIPAG_ViTB32.pt          writes CLIPAG_ViTB32.safetensors
  clipag convert ViT-B-32.pt --out openai.safetensors     OpenAI's TorchScript files too
"""
INTERRUPTED = 130  # what a shell reports after Ctrl-C


def parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    root = argparse.ArgumentParser(
        prog="clipag", description="Guidance by CLIPAG: CLIP whose gradients mean something."
    )
    commands = root.add_subparsers(dest="command", required=True)

    def command(name: str, help: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    generate = command("generate", "draw a prompt by pixel ascent, with no generator", EXAMPLES)
    generate.set_defaults(run=_generate)
    add = generate.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="what to draw; several become one batch")
    add(
        "--model",
        default="clipag-mini",
        help="a known model or a weights file (default: %(default)s)",
    )
    add("--steps", type=int, help="updates (default: what suits the model)")
    add("--seed", type=int, default=0, help="same seed, same picture (default: %(default)s)")
    add("--size", type=int, default=224, help="side in pixels (default: %(default)s)")
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
    add("--prefix", default="", help='put before every prompt: "a pencil drawing of"')
    add("--truncate", action="store_true", help="cut prompts of more than 77 tokens")
    add("--trajectory", type=Path, metavar="DIR", help="write start, middle, end and an animation")
    add(
        "--out",
        type=Path,
        help="a .png for one prompt, a folder for several (default: PROMPT-SEED.png)",
    )

    vqgan = command("vqgan", "draw a prompt with a VQGAN (VQGAN+CLIP)", VQGAN_EXAMPLES)
    vqgan.set_defaults(run=_vqgan)
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
    add("-sd", "--seed", type=int, default=0, help="same seed, same picture (default: %(default)s)")
    add("-s", "--size", type=int, nargs="+", default=[224], metavar=("W", "H"),
        help="width and height in pixels, or one for both (default: 224)")  # fmt: skip
    add("-cuts", "--views", "--num_cuts", type=int, help="views an update")
    add("-cutm", "--cut-method", "--cut_method", metavar="METHOD",
        help="how views are cut: latest, original, updated, nrupdated, updatedpooling")  # fmt: skip
    add("-cutp", "--cut-power", "--cut_power", type=float, default=1.0,
        help="of random crops: above 1 they are rather small (default: %(default)s)")  # fmt: skip
    add("-aug", "--augments", nargs="+", metavar="NAME",
        help="what latest and nrupdated do to views: Ji Sh Gn Pe Ro Af Et Ts Cr Er Re")  # fmt: skip
    add("-in", "-ii", "--init", "--init_noise", "--init_image", default="noise",
        metavar="noise|pixels|gradient|IMAGE",
        help="where to start (default: %(default)s)")  # fmt: skip
    add("-lr", "--rate", "--learning_rate", type=float, help="learning rate")
    add("-cpe", "--change-every", "--change_prompt_every", type=int, metavar="STEPS",
        help="length of a scene, around and around (default: all last equally long)")  # fmt: skip
    add("--prefix", default="", help='put before every text: "a pencil drawing of"')
    add("--truncate", action="store_true", help="cut texts of more than 77 tokens")
    add("--trajectory", type=Path, metavar="DIR", help="write start, middle, end and an animation")
    add(
        "--frames", type=Path, metavar="DIR", help="write every step as a numbered PNG, for a video"
    )
    add("-vid", "--video", dest="frames", action="store_const", const=Path("steps"),
        help="the same as --frames steps")  # fmt: skip
    add("-o", "--out", "--output", type=Path,
        help="a .png for one prompt, a folder for several (default: PROMPT-SEED.png)")  # fmt: skip

    run = command(
        "run", "run a CLIP-guided script as it is, with CLIPAG for its CLIP", RUN_EXAMPLES
    )
    run.description = (
        "Run a script written for OpenAI's clip, unchanged: its `import clip` gets CLIPAG, and "
        "what has gone from its libraries since it was written is put back."
    )
    run.set_defaults(run=_run)
    run.add_argument(
        "--model",
        help="what every clip.load gets: a known model or a weights file (default: clipag-mini)",
    )
    run.add_argument("--device", choices=["cpu"], help="run on the CPU what asks for cuda")
    run.add_argument("script", type=Path, metavar="SCRIPT", help="a .py file or .ipynb notebook")
    run.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own arguments"
    )
    models = command("models", "list the models that have a name", MODELS_EXAMPLES)
    models.set_defaults(run=_models)
    models.add_argument("name", nargs="?", metavar="NAME", help="say all about this one")
    pull = command("pull", "download a model's weights", PULL_EXAMPLES)
    pull.set_defaults(run=_pull)
    pull.add_argument("name", metavar="NAME", help="a known model, or OWNER/NAME on the Hub")
    convert = command("convert", "rewrite a checkpoint as .safetensors", CONVERT_EXAMPLES)
    convert.set_defaults(run=_convert)
    convert.add_argument("file", type=Path, metavar="FILE.pt", help="what to read; no code is run")
    convert.add_argument("--out", type=Path, metavar="FILE.safetensors", help="what to write")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ClipagError as error:
        print(f"clipag: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has gone (`clipag models | head`): let the last flush go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A full disk, a name that is too long, a folder nobody may enter: the system's words.
        print(f"clipag: {error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("clipag: interrupted.", file=sys.stderr)
        return INTERRUPTED
    return code


def _run(options: argparse.Namespace) -> int:
    # Only here: the library imports no integration until it is asked for one.
    from .integrations.run import run_script

    code: int = run_script(options.script, options.arguments, options.model, options.device)
    return code


def _generate(options: argparse.Namespace) -> int:
    # What can be refused is refused before torch is imported and anything is computed.
    outputs = _outputs(options.prompts, options.out, options.seed)
    if options.trajectory is not None:
        _need_folder(
            options.trajectory.parent if not options.trajectory.exists() else options.trajectory
        )

    from .model import load_clipag
    from .sampler import sample, save_png, settings_for, to_pil
    from .trajectory import Trajectory

    model = load_clipag(options.model)
    steps = settings_for(model).steps if options.steps is None else options.steps
    trajectory = Trajectory(steps) if options.trajectory is not None else None
    ascent = sample(
        options.prompts,
        model,
        steps=steps,
        seed=options.seed,
        size=options.size,
        views=options.views,
        init=options.init,
        prefix=options.prefix,
        truncate=options.truncate,
        callback=trajectory,
    )
    for prompt, image, path in zip(options.prompts, ascent.images, outputs, strict=True):
        facts = {
            "prompt": f"{options.prefix} {prompt}".strip(),
            "seed": options.seed,
            "model": model.name,
            "steps": ascent.steps,
            "init": options.init,
            "Software": "clipag-plugins",
        }
        save_png(to_pil(image), path, facts)
        print(path)
    if trajectory is not None:
        for path in trajectory.save(options.trajectory, ascent.images, outputs):
            print(path)
    if ascent.interrupted:
        print(
            f"clipag: interrupted after {ascent.steps} steps; the best so far is kept.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


def _vqgan(options: argparse.Namespace) -> int:
    prompts = [*options.prompts, *([] if options.more is None else [options.more])]
    if not prompts and not options.image_prompts:
        raise ClipagError("There is no prompt: say what to draw.")
    prompts = prompts or [""]
    if len(options.size) > 2:
        raise ClipagError(f"--size has {len(options.size)} numbers: give width and height.")
    outputs = _outputs(prompts, options.out, options.seed)
    for folder in (options.trajectory, options.frames):
        if folder is not None:
            _need_folder(folder if folder.exists() else folder.parent)

    from .integrations import vqgan
    from .integrations.cutouts import Cutouts
    from .integrations.prompts import parse_scenes
    from .integrations.vqgan_weights import load_vqgan
    from .model import load_clipag
    from .sampler import save_png, to_pil
    from .trajectory import Frames, Trajectory

    for prompt in prompts:
        parse_scenes(prompt or options.image_prompts)
    chosen = {
        "count": options.views,
        "method": options.cut_method,
        "augments": options.augments,
        "power": options.cut_power,
    }
    views = Cutouts(**{name: value for name, value in chosen.items() if value is not None})
    model, drawing = load_clipag(options.model), load_vqgan(options.vqgan, options.vqgan_config)
    steps = vqgan.STEPS if options.steps is None else options.steps
    for prompt, path in zip(prompts, outputs, strict=True):
        trajectory = None if options.trajectory is None else Trajectory(steps)
        frames = None if options.frames is None else Frames(options.frames, path.stem)
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
            init=options.init,
            rate=vqgan.RATE if options.rate is None else options.rate,
            change_every=options.change_every,
            prefix=options.prefix,
            truncate=options.truncate,
            callbacks=callbacks,
        )
        facts = {
            "prompt": prompt,
            "image prompts": options.image_prompts,
            "prefix": options.prefix,
            "seed": options.seed,
            "model": model.name,
            "vqgan": options.vqgan,
            "steps": ascent.steps,
            "init": options.init,
            "Software": "clipag-plugins",
        }
        save_png(
            to_pil(ascent.images[0]),
            path,
            {key: value for key, value in facts.items() if value != ""},
        )
        print(path)
        if trajectory is not None:
            for written in trajectory.save(options.trajectory, ascent.images, [path]):
                print(written)
        if ascent.interrupted:
            print(
                f"clipag: interrupted after {ascent.steps} steps; the best so far is kept.",
                file=sys.stderr,
            )
            return INTERRUPTED
    return 0


def _models(options: argparse.Namespace) -> int:
    from . import hub
    from .integrations import vqgan_weights

    if options.name is None:
        width = max(map(len, hub.MODELS))
        for name, source in hub.MODELS.items():
            place = "embedded" if source.embedded else "cached" if hub.is_cached(name) else ""
            print(f"{name:{width}}  {source.megabytes:5} MB  {source.threat_model:14}  {place}")
        print(f"{vqgan_weights.EMBEDDED:{width}}  {'':8}  {'VQGAN':14}  embedded")
        for name, address in vqgan_weights.VQGANS.items():
            place = "cached" if vqgan_weights.is_cached(name) else ""
            size = f"{address.megabytes:5} MB" if address.megabytes else ""
            print(f"{name:{width}}  {size:8}  {'VQGAN':14}  {place}")
        return 0
    if options.name not in hub.MODELS:
        raise ClipagError(f"There is no model {options.name!r}; known are {', '.join(hub.MODELS)}.")
    source = hub.MODELS[options.name]
    for fact in ("place", "address", "architecture", "threat_model", "licence", "citation"):
        print(f"{fact.replace('_', ' ')}: {getattr(source, fact)}")
    return 0


def _pull(options: argparse.Namespace) -> int:
    from . import hub
    from .integrations import vqgan_weights

    known = options.name in vqgan_weights.VQGANS
    print(vqgan_weights.pull_vqgan(options.name) if known else hub.pull(options.name))
    return 0


def _convert(options: argparse.Namespace) -> int:
    out = options.file.with_suffix(".safetensors") if options.out is None else options.out
    if not options.file.is_file():
        raise ClipagError(f"There is no file {options.file}: name a checkpoint.")
    if out.suffix != ".safetensors" or out.is_dir():
        raise ClipagError(f"--out {out} does not end in .safetensors, which is what is written.")
    if out.exists() and out.samefile(options.file):
        raise ClipagError(f"{out} would replace what it is made from: name another --out.")
    _need_folder(out.parent)

    from . import hub

    hub.convert(options.file, out)
    print(out)
    return 0


def _outputs(prompts: Sequence[str], out: Path | None, seed: int) -> list[Path]:
    """Name one PNG a prompt, and make sure that it can be written."""
    if out is not None and len(prompts) == 1 and not out.is_dir() and out.suffix:
        if out.suffix.lower() != ".png":
            raise ClipagError(f"--out {out} ends in {out.suffix}: pictures are written as .png.")
        _need_folder(out.parent)
        return [out]
    folder = Path() if out is None else out
    if out is not None and len(prompts) > 1 and out.suffix.lower() == ".png" and not out.is_dir():
        raise ClipagError(f"--out {out} is one file for {len(prompts)} prompts: name a folder.")
    _need_folder(folder)
    paths: list[Path] = []
    for prompt in prompts:
        name = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "picture"
        path, count = folder / f"{name}-{seed}.png", 1
        while path in paths:
            count += 1
            path = folder / f"{name}-{seed}-{count}.png"
        if path.is_dir():
            raise ClipagError(f"{path} is a folder: move it, or name another --out.")
        paths.append(path)
    return paths


def _need_folder(folder: Path) -> None:
    # os.path, not Path: a folder that may not be looked into counts as none.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ClipagError(f"There is no folder {folder}: make it first, or name another.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ClipagError(f"The folder {folder} cannot be written to: name another.") from error
