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

EXAMPLES = """\
examples:
  clipag generate "a red apple"
  clipag generate "a castle" "a rocket" --seed 3 --out pictures/
  clipag generate "a snail" --count 8 --out pictures/          seeds 0 to 7, one batch
  clipag generate "a fox" --prefix "oil painting of" --trajectory steps/
  clipag generate "a sailboat" --model clip-mini --views 1     the vanilla twin, unaugmented
  clipag generate "a violin" --model CLIPAG_ViTB32.pt          the authors' weights
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
    add = generate.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="what to draw; several become one batch")
    add(
        "--model",
        default="clipag-mini",
        help="a known model or a weights file (default: %(default)s)",
    )
    add("--device", help=DEVICE_HELP)
    add("--steps", type=int, help="updates (default: what suits the model)")
    add("--seed", type=int, default=0, help="same seed, same picture (default: %(default)s)")
    add("--count", type=int, default=1, help="pictures a prompt: SEED, SEED + 1, … (default: 1)")
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
    add("--compile", action="store_true", help="torch.compile the model first: for very long runs")
    add("--trajectory", type=Path, metavar="DIR", help="write start, middle, end and an animation")
    add(
        "--out",
        type=Path,
        help="a .png for one prompt, a folder for several (default: PROMPT-SEED.png)",
    )

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
    # What can be refused is refused before torch is imported and anything is computed.
    if options.count < 1:
        raise ClipagError(f"--count is {options.count}: draw at least 1 picture a prompt.")
    seeds = range(options.seed, options.seed + options.count)
    drawn = [(prompt, seed) for prompt in options.prompts for seed in seeds]
    outputs = _outputs(drawn, options.out)
    if options.trajectory is not None:
        _need_folder(
            options.trajectory.parent if not options.trajectory.exists() else options.trajectory
        )

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
    if ascent.interrupted:
        print(
            f"clipag: interrupted after {ascent.steps} steps; the best so far is kept.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


def _models(options: argparse.Namespace) -> int:
    from . import hub

    if options.name is None:
        width = max(map(len, hub.MODELS))
        for name, source in hub.MODELS.items():
            place = "embedded" if source.embedded else "cached" if hub.is_cached(name) else ""
            print(f"{name:{width}}  {source.megabytes:5} MB  {source.threat_model:14}  {place}")
        return 0
    if options.name not in hub.MODELS:
        raise ClipagError(f"There is no model {options.name!r}; known are {', '.join(hub.MODELS)}.")
    source = hub.MODELS[options.name]
    for fact in ("place", "address", "architecture", "threat_model", "licence", "citation"):
        print(f"{fact.replace('_', ' ')}: {getattr(source, fact)}")
    return 0


def _pull(options: argparse.Namespace) -> int:
    from . import hub

    print(hub.pull(options.name))
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


def _outputs(drawn: Sequence[tuple[str, int]], out: Path | None) -> list[Path]:
    """Name one PNG for each prompt and seed, and make sure that it can be written."""
    if out is not None and len(drawn) == 1 and not out.is_dir() and out.suffix:
        if out.suffix.lower() != ".png":
            raise ClipagError(f"--out {out} ends in {out.suffix}: pictures are written as .png.")
        _need_folder(out.parent)
        return [out]
    folder = Path() if out is None else out
    if out is not None and len(drawn) > 1 and out.suffix.lower() == ".png" and not out.is_dir():
        raise ClipagError(f"--out {out} is one file for {len(drawn)} pictures: name a folder.")
    _need_folder(folder)
    paths: list[Path] = []
    for prompt, seed in drawn:
        name = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "picture"
        path, again = folder / f"{name}-{seed}.png", 1
        while path in paths:
            again += 1
            path = folder / f"{name}-{seed}-{again}.png"
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
