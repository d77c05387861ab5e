"""Options that several commands share, and where their pictures are written."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..arguments import FIRST_TOO_LARGE_SEED, RunOptions
from ..defaults import MODEL, PRECISIONS, SIDE
from ..errors import INTERRUPTED, ClipagError
from ..files import require_writable_folder, require_writable_or_creatable, slug

if TYPE_CHECKING:
    import torch

    from ..ascent import Ascent
    from ..base import ClipagModel
    from ..trajectory import Trajectory

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
DEVICE_HELP = "cpu, cuda, cuda:1, … (default: cuda if there is one)"
COMPARED_MODELS = ("clip-mini", "clipag-mini")


def command(commands: Commands, name: str, help: str, examples: str) -> argparse.ArgumentParser:
    """Add a command, with examples that are shown as they are written."""
    return commands.add_parser(
        name, help=help, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def seed_number(text: str) -> int:
    """Read a seed, as the `type` of an argparse option."""
    number = int(text)
    if not 0 <= number < FIRST_TOO_LARGE_SEED:
        raise argparse.ArgumentTypeError(f"{text} is no seed: choose a number from 0 to 2⁶³ − 1")
    return number


def add_picture_options(command: argparse.ArgumentParser, suffix: str) -> None:
    """Add the options of commands that draw a batch of prompts."""
    add = command.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="what to draw; several become one batch")
    add_model(command)
    add_seed(command)
    add("--count", type=int, default=1, help="pictures a prompt: SEED, SEED + 1, … (default: 1)")
    add("--size", type=int, default=SIDE, help="side in pixels (default: %(default)s)")
    add_run_options(command)
    add("--compile", action="store_true", help="torch.compile the model first: for GPUs")
    add(
        "--out",
        type=Path,
        help=f"a {suffix} for one prompt, a folder for several (default: PROMPT-SEED{suffix})",
    )


def add_model(command: argparse.ArgumentParser, *aliases: str) -> None:
    """Add --model, the CLIP that guides."""
    command.add_argument(
        "--model",
        *aliases,
        default=MODEL,
        help="the CLIP that guides: a known model or a weights file (default: %(default)s)",
    )


def add_models(command: argparse.ArgumentParser) -> None:
    """Add --models, the models that a command compares."""
    command.add_argument(
        "--models",
        nargs="+",
        default=list(COMPARED_MODELS),
        metavar="MODEL",
        help=f"known models or weights files (default: {' '.join(COMPARED_MODELS)})",
    )


def add_seed(command: argparse.ArgumentParser, *aliases: str) -> None:
    """Add --seed."""
    command.add_argument(
        "--seed",
        *aliases,
        type=seed_number,
        default=0,
        help="same seed, same picture (default: %(default)s)",
    )


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Add the options that have the same name in every command that draws."""
    add = command.add_argument
    add("--prefix", default="", help='put before every prompt: "a pencil drawing of"')
    add("--truncate", action="store_true", help="cut prompts of more than 77 tokens")
    add("--trajectory", type=Path, metavar="DIR", help="write start, middle, end and an animation")
    add("--device", help=DEVICE_HELP)
    add(
        "--precision",
        choices=["auto", *PRECISIONS],
        default=RunOptions.precision,
        help="what the model computes in (default: bfloat16 where the hardware has it)",
    )
    add(
        "--max-views",
        type=int,
        default=RunOptions.max_views,
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
    """Return a prompt with --prefix before it; an empty prompt stays empty and is refused later."""
    return f"{options.prefix} {prompt}".strip() if prompt.strip() else prompt


def choose_device(name: str | None) -> "torch.device":
    """Return the device of that name, or by default the first GPU, or the CPU if there is none.

    In a process that torchrun started, "cuda" is the GPU of that process.
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
    """Return the seeds, the prompt and seed of every picture, and the file of every picture.

    It checks the files before torch is imported, so that a bad path is reported at once.
    """
    if options.count < 1:
        raise ClipagError(f"--count is {options.count}: draw at least 1 picture a prompt.")
    seeds = range(options.seed, options.seed + options.count)
    pictures = [(prompt, seed) for prompt in options.prompts for seed in seeds]
    outputs = output_paths(pictures, options.out, suffix, [options.init])
    require_writable_or_creatable(options.trajectory)
    return seeds, pictures, outputs


def output_paths(
    pictures: Sequence[tuple[str, int]],
    out: Path | None,
    suffix: str,
    sources: Sequence[str | Path] = (),
) -> list[Path]:
    """Return a writable path for each picture, given by its prompt and seed.

    No path is one of the `sources`, which may also be words that are not files.
    """
    if out is not None and len(pictures) == 1 and not out.is_dir() and out.suffix:
        if out.suffix.lower() != suffix:
            raise ClipagError(f"--out {out} ends in {out.suffix}: it is written as {suffix}.")
        require_writable_folder(out.parent)
        need_target(out, sources)
        return [out]
    folder = Path() if out is None else out
    if out is not None and len(pictures) > 1 and out.suffix.lower() == suffix and not out.is_dir():
        raise ClipagError(f"--out {out} is one file for {len(pictures)} pictures: name a folder.")
    require_writable_or_creatable(folder)
    paths: list[Path] = []
    for prompt, seed in pictures:
        name = slug(prompt) or "picture"
        path, number = folder / f"{name}-{seed}{suffix}", 1
        while path in paths:
            number += 1
            path = folder / f"{name}-{seed}-{number}{suffix}"
        need_target(path, sources)
        paths.append(path)
    return paths


def need_target(path: Path, sources: Sequence[str | Path] = ()) -> None:
    """Raise ClipagError if a file to be written is a folder or one of the files it is made from."""
    if path.is_dir():
        raise ClipagError(f"{path} is a folder: move it, or name another --out.")
    # os.path, not Path: a source may be a word that is too long for a file name.
    if any(os.path.exists(source) and path.exists() and path.samefile(source)  # noqa: PTH110
           for source in sources):  # fmt: skip
        raise ClipagError(f"{path} would replace what it is made from: name another --out.")


def model_metadata(model: "ClipagModel", precision: str) -> dict[str, str]:
    """Return the part of a picture's metadata that says which model drew it, in which precision."""
    from ..precision import choose

    dtype = str(choose(precision, model.visual)).removeprefix("torch.")
    return {"model": model.name, "precision": dtype, "Software": "clipag-plugins"}


def new_trajectory(options: argparse.Namespace, steps: int) -> "Trajectory | None":
    """Return the callback that records an ascent for --trajectory, if it was given."""
    from ..trajectory import Trajectory

    return None if options.trajectory is None else Trajectory(steps)


def save_trajectory(
    options: argparse.Namespace,
    trajectory: "Trajectory | None",
    ascent: "Ascent",
    outputs: Sequence[Path],
    metadata: Sequence[Mapping[str, object]],
) -> None:
    """Write a recorded trajectory, with the names and the metadata of the pictures."""
    if trajectory is not None:
        images, numbers = ascent.images, ascent.rows
        for path in trajectory.save(options.trajectory, images, outputs, metadata, numbers):
            print(path)


def exit_code(ascent: "Ascent") -> int:
    """Return the exit code after an ascent; say so on stderr if Ctrl-C ended it."""
    if not ascent.interrupted:
        return 0
    print(
        f"clipag: interrupted after {ascent.steps} steps; the best so far is kept.",
        file=sys.stderr,
    )
    return INTERRUPTED
