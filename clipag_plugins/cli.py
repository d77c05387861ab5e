"""The command line: clipag …"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ClipagError

if TYPE_CHECKING:
    import torch

    from .ascent import Ascent

EXAMPLES = """\
examples:
  clipag generate "a red apple"
  clipag generate "a castle" "a rocket" --seed 3 --out pictures/
  clipag generate "a snail" --count 8 --out pictures/          seeds 0 to 7, one batch
  clipag generate "a fox" --prefix "oil painting of" --trajectory steps/
  clipag generate "a sailboat" --model clip-mini --views 1     the vanilla twin, unaugmented
  clipag generate "a violin" --model CLIPAG_ViTB32.pt          the authors' weights
"""
DRAW_EXAMPLES = """\
examples:
  clipag draw "a red apple"                                    a-red-apple-0.svg and .png
  clipag draw "a castle" "a rocket" --count 3 --out drawings/
  clipag draw "a fox" --strokes 64 --width 4 12 --palette black,e63946,f1faee
  clipag draw "a sailboat" --init photo.jpg --negative "a messy sketch" --trajectory steps/
  clipag draw "a violin" --model clip-mini --no-augment        the vanilla twin, unaugmented
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
  clipag run --device cpu clipdraw.ipynb                CLIPDraw; pydiffvg is ours if there is none

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
BENCH_EXAMPLES = """\
examples:
  clipag bench                             four models, 1 to 64 views: half an hour on a CPU
  clipag bench --models ViT-B-32 --views 32 --device cuda
  clipag bench --models clipag-mini --out bench.json
"""
DEVICE_HELP = "cpu, cuda, cuda:1, … (default: cuda if there is one)"
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
    _add_picture_options(generate, suffix=".png")
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

    draw = command("draw", "draw a prompt with strokes, as SVG (CLIPDraw)", DRAW_EXAMPLES)
    draw.set_defaults(run=_draw)
    _add_picture_options(draw, suffix=".svg")
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
    _add_run_options(vqgan)
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
    run.add_argument(
        "--pydiffvg", choices=["ours"], help="use our pydiffvg even where the real one is installed"
    )
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
    bench = command("bench", "time the guide beside open_clip and clip-anytorch", BENCH_EXAMPLES)
    bench.set_defaults(run=_bench)
    add = bench.add_argument
    add("--models", nargs="+", metavar="NAME", help="embedded, or an open_clip architecture")
    add("--views", type=int, nargs="+", metavar="N", help="views of one look (default: 1 8 32 64)")
    add("--rounds", type=int, default=3, help="of which the median counts (default: %(default)s)")
    add("--device", help=DEVICE_HELP)
    add("--out", type=Path, metavar="FILE.json", help="keep the figures")
    return root


def _add_picture_options(command: argparse.ArgumentParser, suffix: str) -> None:
    """Add what all commands share that make pictures of prompts."""
    add = command.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="what to draw; several become one batch")
    add(
        "--model",
        default="clipag-mini",
        help="what guides: a known model or a weights file (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="same seed, same picture (default: %(default)s)")
    add("--count", type=int, default=1, help="pictures a prompt: SEED, SEED + 1, … (default: 1)")
    add("--size", type=int, default=224, help="side in pixels (default: %(default)s)")
    _add_run_options(command)
    add("--compile", action="store_true", help="torch.compile the model first: for GPUs")
    add(
        "--out",
        type=Path,
        help=f"a {suffix} for one prompt, a folder for several (default: PROMPT-SEED{suffix})",
    )


def _add_run_options(command: argparse.ArgumentParser) -> None:
    """Add what has one name in every command that draws, `vqgan` with its aliases included."""
    add = command.add_argument
    add("--prefix", default="", help='put before every prompt: "a pencil drawing of"')
    add("--truncate", action="store_true", help="cut prompts of more than 77 tokens")
    add("--trajectory", type=Path, metavar="DIR", help="write start, middle, end and an animation")
    add("--device", help=DEVICE_HELP)
    add(
        "--precision",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="what the model computes in (default: the fastest here, by a measurement)",
    )
    add(
        "--max-views",
        type=int,
        default=64,
        help="views that the model sees at once; fewer need less memory (default: %(default)s)",
    )


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

    code: int = run_script(
        options.script, options.arguments, options.model, options.device, options.pydiffvg
    )
    return code


def _bench(options: argparse.Namespace) -> int:
    if options.out is not None:
        _need_folder(options.out.parent)
    for option, numbers in (("--rounds", [options.rounds]), ("--views", options.views or [])):
        if min(numbers, default=1) < 1:
            raise ClipagError(f"{option} is {min(numbers)}: it must be at least 1.")
    from . import bench

    bench.main(
        options.models or bench.MODELS,
        options.views or bench.VIEWS,
        options.rounds,
        _device(options.device),
        options.out,
    )
    return 0


def _device(name: str | None) -> "torch.device":
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ClipagError(f"--device {name} cannot be used on this machine: try cpu.") from error
    return device


def _generate(options: argparse.Namespace) -> int:
    seeds, drawn, outputs = _plan(options, ".png")

    from .model import load_clipag
    from .sampler import sample, save_png, settings_for, to_pil
    from .trajectory import Trajectory

    model = load_clipag(options.model, _device(options.device))
    steps = settings_for(model).steps if options.steps is None else options.steps
    trajectory = Trajectory(steps) if options.trajectory is not None else None
    ascent = sample(
        options.prompts,
        model,
        steps=steps,
        seed=seeds,
        size=options.size,
        views=options.views,
        init=options.init,
        prefix=options.prefix,
        truncate=options.truncate,
        precision=options.precision,
        max_views=options.max_views,
        compile=options.compile,
        callback=trajectory,
    )
    for (prompt, seed), image, path in zip(drawn, ascent.images, outputs, strict=True):
        facts = {
            "prompt": f"{options.prefix} {prompt}".strip(),
            "seed": seed,
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
    return _code_of(ascent)


def _draw(options: argparse.Namespace) -> int:
    seeds, drawn, outputs = _plan(options, ".svg")
    for path in outputs:
        beside = path.with_suffix(".png")
        if beside.is_dir():
            raise ClipagError(f"{beside} is a folder: move it, or name another --out.")
        if beside.exists() and Path(options.init).exists() and beside.samefile(options.init):
            raise ClipagError(f"{beside} would replace what it starts from: name another --out.")

    import torch

    from .integrations import clipdraw
    from .integrations.svg import write_svg
    from .model import load_clipag
    from .sampler import save_png, to_pil
    from .trajectory import Trajectory, save_gif

    model = load_clipag(options.model, _device(options.device))
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
    for number, ((prompt, seed), path) in enumerate(zip(drawn, outputs, strict=True)):
        facts = {
            "prompt": f"{options.prefix} {prompt}".strip(),
            "negative": "; ".join(options.negative) or "none",
            "seed": seed,
            "model": model.name,
            "steps": ascent.steps,
            "strokes": options.strokes,
            "shapes": options.shapes,
            "width": "{:g} {:g}".format(*options.width),
            "palette": options.palette or "any",
            "views": "augmented" if options.augment else "the drawing itself",
            "init": options.init,
            "Software": "clipag-plugins",
        }
        groups, size = canvas.groups(number), (options.size, options.size)
        write_svg(path, groups, size, background=torch.ones(3), facts=facts)
        print(path)
        save_png(to_pil(images[number]), path.with_suffix(".png"), facts)
        print(path.with_suffix(".png"))
    if trajectory is not None:
        for path in trajectory.save(options.trajectory, images, outputs):
            print(path)
        for output, frames in zip(outputs, clipdraw.stroke_by_stroke(canvas), strict=True):
            path = options.trajectory / f"{output.stem}-strokes.gif"
            save_gif(frames, path)
            print(path)
    return _code_of(ascent)


def _plan(
    options: argparse.Namespace, suffix: str
) -> tuple[range, list[tuple[str, int]], list[Path]]:
    """Return the seeds, the prompt and seed of every picture, and where each is written.

    What can be refused is refused here, before torch is imported and anything is computed.
    """
    if options.count < 1:
        raise ClipagError(f"--count is {options.count}: draw at least 1 picture a prompt.")
    seeds = range(options.seed, options.seed + options.count)
    drawn = [(prompt, seed) for prompt in options.prompts for seed in seeds]
    outputs = _outputs(drawn, options.out, suffix)
    _need_place(options.trajectory)
    return seeds, drawn, outputs


def _code_of(ascent: "Ascent") -> int:
    """Return the exit code after an ascent, and say if it was cut short."""
    if not ascent.interrupted:
        return 0
    print(
        f"clipag: interrupted after {ascent.steps} steps; the best so far is kept.",
        file=sys.stderr,
    )
    return INTERRUPTED


def _vqgan(options: argparse.Namespace) -> int:
    prompts = [*options.prompts, *([] if options.more is None else [options.more])]
    if not prompts and not options.image_prompts:
        raise ClipagError("There is no prompt: say what to draw.")
    prompts = prompts or [""]
    if len(options.size) > 2:
        raise ClipagError(f"--size has {len(options.size)} numbers: give width and height.")
    outputs = _outputs([(prompt, options.seed) for prompt in prompts], options.out, ".png")
    _need_place(options.trajectory)
    _need_place(options.frames)

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
    model = load_clipag(options.model, _device(options.device))
    drawing = load_vqgan(options.vqgan, options.vqgan_config)
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
            precision=options.precision,
            max_views=options.max_views,
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
            return _code_of(ascent)
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


def _outputs(drawn: Sequence[tuple[str, int]], out: Path | None, suffix: str) -> list[Path]:
    """Name one file for each prompt and seed, and make sure that it can be written."""
    if out is not None and len(drawn) == 1 and not out.is_dir() and out.suffix:
        if out.suffix.lower() != suffix:
            raise ClipagError(f"--out {out} ends in {out.suffix}: it is written as {suffix}.")
        _need_folder(out.parent)
        return [out]
    folder = Path() if out is None else out
    if out is not None and len(drawn) > 1 and out.suffix.lower() == suffix and not out.is_dir():
        raise ClipagError(f"--out {out} is one file for {len(drawn)} pictures: name a folder.")
    _need_folder(folder)
    paths: list[Path] = []
    for prompt, seed in drawn:
        name = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "picture"
        path, again = folder / f"{name}-{seed}{suffix}", 1
        while path in paths:
            again += 1
            path = folder / f"{name}-{seed}-{again}{suffix}"
        if path.is_dir():
            raise ClipagError(f"{path} is a folder: move it, or name another --out.")
        paths.append(path)
    return paths


def _need_place(folder: Path | None) -> None:
    """Make sure that a folder that was asked for can be written to, or made."""
    if folder is not None:
        _need_folder(folder if folder.exists() else folder.parent)


def _need_folder(folder: Path) -> None:
    # os.path, not Path: a folder that may not be looked into counts as none.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ClipagError(f"There is no folder {folder}: make it first, or name another.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ClipagError(f"The folder {folder} cannot be written to: name another.") from error
