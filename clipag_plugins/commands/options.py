"""What several commands share: options, and where their output goes."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..arguments import RunOptions
from ..errors import ClipagError
from ..files import slug

if TYPE_CHECKING:
    import torch

    from ..ascent import Ascent
    from ..base import ClipagModel

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DEVICE_HELP = "cpu, cuda, cuda:1, … (default: cuda if there is one)"
SIGMA, SAMPLES = 1.0, 32  # of randomized smoothing; chosen by benchmarks/pag.py
INTERRUPTED = 130  # what a shell reports after Ctrl-C


def command(commands: Commands, name: str, help: str, examples: str) -> argparse.ArgumentParser:
    """Add a command whose examples are shown as they are written."""
    return commands.add_parser(
        name, help=help, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def seed_number(text: str) -> int:
    """Read a seed as argparse's `type`."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no seed: choose a number from 0 to 2⁶³ − 1")
    return number


def fraction(text: str) -> float:
    """Read a number or a fraction, such as 8/255; raise ValueError if it is neither."""
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / (float(bottom) if slash else 1)
    except ZeroDivisionError as error:
        raise ValueError(f"{text!r} divides by 0") from error


def add_picture_options(command: argparse.ArgumentParser, suffix: str) -> None:
    """Add what all commands share that make pictures of prompts."""
    add = command.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="what to draw; several become one batch")
    add(
        "--model",
        default="clipag-mini",
        help="what guides: a known model or a weights file (default: %(default)s)",
    )
    add(
        "--seed", type=seed_number, default=0, help="same seed, same picture (default: %(default)s)"
    )
    add("--count", type=int, default=1, help="pictures a prompt: SEED, SEED + 1, … (default: 1)")
    add("--size", type=int, default=224, help="side in pixels (default: %(default)s)")
    add_run_options(command)
    add("--compile", action="store_true", help="torch.compile the model first: for GPUs")
    add(
        "--out",
        type=Path,
        help=f"a {suffix} for one prompt, a folder for several (default: PROMPT-SEED{suffix})",
    )


def add_models(command: argparse.ArgumentParser) -> None:
    """Add the models that a command compares."""
    command.add_argument(
        "--models",
        nargs="+",
        default=["clip-mini", "clipag-mini"],
        metavar="MODEL",
        help="known models or weights files (default: clip-mini clipag-mini)",
    )


def add_run_options(command: argparse.ArgumentParser) -> None:
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


def run_options(options: argparse.Namespace) -> RunOptions:
    """Return the options of `add_run_options` as the library takes them."""
    return RunOptions(
        options.precision,
        options.max_views,
        getattr(options, "compile", False),
        options.truncate,
    )


def prefixed(options: argparse.Namespace, prompt: str) -> str:
    """Return a prompt with --prefix before it; an empty prompt stays empty, to be refused."""
    return f"{options.prefix} {prompt}".strip() if prompt.strip() else prompt


def choose_device(name: str | None) -> "torch.device":
    """Return the device that was asked for, or the best there is.

    Of several GPUs it is the first, or where torchrun started several processes, each one's own.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ClipagError(f"--device {name} cannot be used on this machine: try cpu.") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def plan(
    options: argparse.Namespace, suffix: str
) -> tuple[range, list[tuple[str, int]], list[Path]]:
    """Return the seeds, the prompt and seed of every picture, and where each is written.

    What can be refused is refused here, before torch is imported and anything is computed.
    """
    if options.count < 1:
        raise ClipagError(f"--count is {options.count}: draw at least 1 picture a prompt.")
    seeds = range(options.seed, options.seed + options.count)
    drawn = [(prompt, seed) for prompt in options.prompts for seed in seeds]
    outputs = output_paths(drawn, options.out, suffix, [options.init])
    require_writable_or_creatable(options.trajectory)
    return seeds, drawn, outputs


def output_paths(
    drawn: Sequence[tuple[str, int]],
    out: Path | None,
    suffix: str,
    sources: Sequence[str | Path] = (),
) -> list[Path]:
    """Name one file for each prompt and seed, and make sure that it can be written.

    None may replace one of the `sources`, which may also be words that are no files.
    """
    if out is not None and len(drawn) == 1 and not out.is_dir() and out.suffix:
        if out.suffix.lower() != suffix:
            raise ClipagError(f"--out {out} ends in {out.suffix}: it is written as {suffix}.")
        require_writable_folder(out.parent)
        need_target(out, sources)
        return [out]
    folder = Path() if out is None else out
    if out is not None and len(drawn) > 1 and out.suffix.lower() == suffix and not out.is_dir():
        raise ClipagError(f"--out {out} is one file for {len(drawn)} pictures: name a folder.")
    require_writable_or_creatable(folder)
    paths: list[Path] = []
    for prompt, seed in drawn:
        name = slug(prompt) or "picture"
        path, again = folder / f"{name}-{seed}{suffix}", 1
        while path in paths:
            again += 1
            path = folder / f"{name}-{seed}-{again}{suffix}"
        need_target(path, sources)
        paths.append(path)
    return paths


def need_target(path: Path, sources: Sequence[str | Path] = ()) -> None:
    """Make sure that a file to be written is no folder, and none of what it is made from."""
    if path.is_dir():
        raise ClipagError(f"{path} is a folder: move it, or name another --out.")
    # os.path, not Path: a source may be a word that is too long for a file's name.
    if any(os.path.exists(source) and path.exists() and path.samefile(source)  # noqa: PTH110
           for source in sources):  # fmt: skip
        raise ClipagError(f"{path} would replace what it is made from: name another --out.")


def require_writable_or_creatable(folder: Path | None) -> None:
    """Make sure that a folder that was asked for can be written to, or be made when it is."""
    if folder is not None:
        require_writable_folder(folder if folder.exists() else folder.parent)


def require_writable_folder(folder: Path) -> None:
    """Make sure that a folder is there and can be written to."""
    # os.path, not Path: a folder that may not be looked into counts as none.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ClipagError(f"There is no folder {folder}: make it first, or name another.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ClipagError(f"The folder {folder} cannot be written to: name another.") from error


def made_by(model: "ClipagModel", precision: str) -> dict[str, str]:
    """Return what every picture carries: by what it was made, and in which number format."""
    from ..precision import choose

    dtype = str(choose(precision, model.visual)).removeprefix("torch.")
    return {"model": model.name, "precision": dtype, "Software": "clipag-plugins"}


def code_of(ascent: "Ascent") -> int:
    """Return the exit code after an ascent, and say if it was cut short."""
    if not ascent.interrupted:
        return 0
    print(
        f"clipag: interrupted after {ascent.steps} steps; the best so far is kept.",
        file=sys.stderr,
    )
    return INTERRUPTED
