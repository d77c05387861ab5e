"""Options that several commands share, and where their pictures are written."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..arguments import FIRST_TOO_LARGE_SEED, RunOptions
from ..defaults import MODEL, PRECISIONS
from ..errors import INTERRUPTED, ClipagError, library
from ..files import require_writable_folder, require_writable_or_creatable, slug
from .canvas_options import add_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..ascent import Ascent
    from ..base import ClipagModel
    from ..trajectory import Recording

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
# A file that is named after a picture: its folder, None for the picture's own, and the end of its
# name, which begins as the picture's.
Companion: TypeAlias = "tuple[Path | None, str]"
TRAJECTORY_ENDINGS = ("-start.png", "-middle.png", "-end.png", ".gif", "-strokes.gif")
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
    add_size(command)
    add_run_options(command)
    add("--compile", action="store_true", help="torch.compile the model first: for GPUs")
    add_out(command, f"a {suffix} for one prompt", f"PROMPT-SEED{suffix}")


def add_out(command: argparse.ArgumentParser, one: str, default: str, *aliases: str) -> None:
    """Add --out, which names a file for one picture, which is replaced, or a folder.

    Args:
        command: the command that gets the option.
        one: what --out names for one picture.
        default: the name of a picture if --out names none.
        *aliases: other names of the option.
    """
    command.add_argument(
        "--out",
        *aliases,
        type=Path,
        help=f"{one}, which is replaced if it exists, or a folder (default: {default}, with a "
        "number added if that exists)",
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


def add_run_options(command: argparse.ArgumentParser, has_bare_video: bool = False) -> None:
    """Add the options that have the same name in every command that draws.

    With `has_bare_video`, --video needs no value; `options.video` is True without one.
    """
    add = command.add_argument
    add("--prefix", default="", help='put before every prompt: "a pencil drawing of"')
    add("--truncate", action="store_true", help="cut prompts of more than 77 tokens")
    add(
        "--prior",
        metavar="diffusion|FILE",
        help="draw an image embedding of each prompt, to guide towards instead of the text's, by "
        "clipag-mini's own prior or by one that clipag prior trained",
    )
    add_recording(command, has_bare_video)
    add_computing(command)


def add_recording(command: argparse.ArgumentParser, has_bare_video: bool = False) -> None:
    """Add --trajectory and --video."""
    add = command.add_argument
    add("--trajectory", type=Path, metavar="DIR", help="write start, middle, end and an animation")
    add(
        "--video",
        type=Path,
        metavar="FILE.mp4",
        nargs="?" if has_bare_video else None,
        const=True if has_bare_video else None,
        help="write a film of one frame a step, or name a folder of films"
        + ("; without a name, the same as -vid" if has_bare_video else ""),
    )


def add_computing(command: argparse.ArgumentParser) -> None:
    """Add the options that say how a run computes: --device, --precision and --max-views."""
    add = command.add_argument
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
    """Return the options of `add_run_options`, or of `add_computing`, as the library takes them."""
    return RunOptions(
        options.precision,
        options.max_views,
        getattr(options, "compile", False),
        getattr(options, "truncate", False),
        prior=getattr(options, "prior", None),
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
    options: argparse.Namespace, *suffixes: str
) -> tuple[range, list[tuple[str, int]], list[Path]]:
    """Return the seeds, the prompt and seed of every picture, and the file of every picture.

    It checks the files before torch is imported, so that a bad path is reported at once. Each
    picture is written once with each of the suffixes; the files returned have the first of them.
    """
    if options.count < 1:
        raise ClipagError(f"--count is {options.count}: draw at least 1 picture a prompt.")
    seeds = range(options.seed, options.seed + options.count)
    pictures = [(prompt, seed) for prompt in options.prompts for seed in seeds]
    beside = [(None, suffix) for suffix in suffixes[1:]]
    companions = [*beside, *recording_files(options, len(pictures))]
    sources = [options.init, getattr(options, "mask", None) or ""]
    outputs = output_paths(pictures, options.out, suffixes[0], sources, companions)
    return seeds, pictures, outputs


def output_paths(
    pictures: Sequence[tuple[str, int]],
    out: Path | None,
    suffix: str,
    sources: Sequence[str | Path] = (),
    companions: Sequence[Companion] = (),
) -> list[Path]:
    """Return a writable path for each picture, given by its prompt and seed.

    An `out` that is a file may be replaced, unless it is one of the `sources`, which may also be
    words that are not files. All other paths are new; see `free_path`.
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
        name = f"{slug(prompt) or 'picture'}-{seed}"
        paths.append(free_path(folder, name, suffix, companions, paths))
    return paths


def free_path(
    folder: Path,
    name: str,
    suffix: str,
    companions: Sequence[Companion] = (),
    taken: Sequence[Path] = (),
) -> Path:
    """Return the path of a new file: NAME.png, or NAME-2.png, NAME-3.png, … if that exists.

    Args:
        folder: where the file will be.
        name: the start of its name.
        suffix: the end of its name.
        companions: files that will have the same start, each as its folder (None for `folder`) and
            the end of its name. None of them exists either.
        taken: paths that other files of this run will have.
    """
    endings = [(folder if other is None else other, ending) for other, ending in companions]
    endings.append((folder, suffix))

    def is_free(stem: str) -> bool:
        # os.path, not Path: a link that leads nowhere must not be replaced, either.
        exists = (os.path.lexists(place / f"{stem}{ending}") for place, ending in endings)
        return folder / f"{stem}{suffix}" not in taken and not any(exists)

    stems = chain([name], (f"{name}-{number}" for number in count(2)))
    return folder / f"{next(filter(is_free, stems))}{suffix}"


def recording_files(options: argparse.Namespace, pictures: int) -> list[Companion]:
    """Check where --trajectory and --video write, and return the files that they will write.

    Args:
        options: those of `add_run_options`.
        pictures: number of pictures of the run.
    """
    files: list[Companion] = []
    if options.trajectory is not None:
        require_writable_or_creatable(options.trajectory)
        files += [(options.trajectory, ending) for ending in TRAJECTORY_ENDINGS]
    if options.video is not None:
        if _is_one_film(options):
            if pictures > 1:
                raise ClipagError(
                    f"--video {options.video} is one file for {pictures} pictures: name a folder."
                )
            require_writable_folder(options.video.parent)
        elif pictures == 1 and options.video.suffix and not options.video.is_dir():
            raise ClipagError(
                f"--video {options.video} ends in {options.video.suffix}: it is written as .mp4."
            )
        else:
            require_writable_or_creatable(options.video)
            files.append((options.video, ".mp4"))
        library("av", "video")
    return files


def _is_one_film(options: argparse.Namespace) -> bool:
    return options.video.suffix.lower() == ".mp4" and not options.video.is_dir()


def need_target(path: Path, sources: Sequence[str | Path] = ()) -> None:
    """Raise ClipagError if a file to be written is a folder or one of the files it is made from."""
    if path.is_dir():
        raise ClipagError(f"{path} is a folder: move it, or name another --out.")
    # os.path, not Path: a source may be a word that is too long for a file name.
    if any(os.path.exists(source) and path.exists() and path.samefile(source)  # noqa: PTH110
           for source in sources):  # fmt: skip
        raise ClipagError(f"{path} would replace what it is made from: name another --out.")


def model_metadata(
    model: "ClipagModel", precision: str, prior: str | None = None
) -> dict[str, str]:
    """Return the part of a picture's metadata that says which model drew it, and how."""
    from ..precision import choose

    dtype = str(choose(precision, model.visual)).removeprefix("torch.")
    metadata = {"model": model.name, "precision": dtype, "Software": "clipag-plugins"}
    return metadata if prior is None else {**metadata, "prior": prior}


def size_of(images: "Tensor") -> str:
    """Return the side of square images (B, 3, H, W), or WxH, as metadata have it."""
    height, width = images.shape[-2:]
    return str(width) if width == height else f"{width}x{height}"


def new_trajectory(options: argparse.Namespace, steps: int) -> "Recording | None":
    """Return the callback that records an ascent for --trajectory and --video, if one was given."""
    if options.trajectory is None and options.video is None:
        return None
    from ..trajectory import Film, Recording, Trajectory

    return Recording(
        None if options.trajectory is None else Trajectory(steps),
        None if options.video is None else Film(steps),
    )


def save_trajectory(
    options: argparse.Namespace,
    trajectory: "Recording | None",
    ascent: "Ascent",
    outputs: Sequence[Path],
    metadata: Sequence[Mapping[str, object]],
) -> None:
    """Write what was recorded, with the names and the metadata of the pictures."""
    if trajectory is None:
        return
    images, indices = ascent.images, ascent.rows
    written = []
    if trajectory.stills is not None:
        folder = options.trajectory
        written += trajectory.stills.save(folder, images, outputs, metadata, indices)
    if trajectory.film is not None:
        one_film = _is_one_film(options)
        films = [
            options.video if one_film else options.video / f"{output.stem}.mp4"
            for output in outputs
        ]
        written += trajectory.film.save(images, films, indices)
    for path in written:
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
