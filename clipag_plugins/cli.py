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
RUN_EXAMPLES = """\
examples:
  clipag run generate.py -p "a red apple" -i 100
  clipag run --device cpu train_CLIPstyler.py --text "a watercolor"    where there is no GPU
  clipag run --model CLIPAG_ViTB32.pt generate.py -p "a red apple"     the authors' weights
  clipag run --device cpu clipdraw.ipynb                               a notebook's code cells

clipag's options stand before SCRIPT; all that follows it is the script's own.
"""
INTERRUPTED = 130  # what a shell reports after Ctrl-C


def parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    root = argparse.ArgumentParser(
        prog="clipag", description="Guidance by CLIPAG: CLIP whose gradients mean something."
    )
    commands = root.add_subparsers(dest="command", required=True)
    generate = commands.add_parser(
        "generate",
        help="draw a prompt by pixel ascent, with no generator",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    _add_run(commands)
    return root


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser(
        "run",
        help="run a CLIP-guided script as it is, with CLIPAG for its CLIP",
        description="Run a script written for OpenAI's clip, unchanged: its `import clip` gets "
        "CLIPAG, and what has gone from its libraries since it was written is put back.",
        epilog=RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ClipagError as error:
        print(f"clipag: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # A full disk, a name that is too long, a folder nobody may enter: the system's words.
        print(f"clipag: {error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("clipag: interrupted before the first step.", file=sys.stderr)
        return INTERRUPTED
    return code


def _run(options: argparse.Namespace) -> int:
    # Only here: the library imports no integration until it is asked for one.
    from .integrations.run import run_script

    return run_script(options.script, options.arguments, options.model, options.device)


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
