"""Run commands one after another in one thread, watch their ascents, and stop them."""

import argparse
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Event

import torch
from torch import Tensor

from ..base import ClipagModel
from ..commands.canvas_options import join_sizes
from ..commands.host import Host
from ..errors import ClipagError
from ..files import slug
from ..hub import is_cached, load_model
from ..registry import MODELS
from .controls import Value
from .tools import Tool

MOST_JOBS = 20  # that run or wait
MOST_PICTURES = 100  # of a session
KEPT_MODELS = 4  # those of two tabs, and their vanilla twins

# The vanilla model that each robust one was made from.
TWINS = {
    "clipag-mini": "clip-mini",
    "clipag-lite": "clip-lite",
    "ViT-B/32": "vanilla:ViT-B-32-laion2B",
    "FARE4-ViT-B/32": "vanilla:ViT-B-32-laion2B",
    "TeCoA4-ViT-B/32": "vanilla:ViT-B-32-laion2B",
    "FARE2-ViT-L/14": "vanilla:ViT-L/14",
    "FARE4-ViT-L/14": "vanilla:ViT-L/14",
    "TeCoA2-ViT-L/14": "vanilla:ViT-L/14",
    "TeCoA4-ViT-L/14": "vanilla:ViT-L/14",
}


@dataclass(frozen=True)
class Preview:
    """What an ascent shows: of which picture of the job, after which step, and its best image.

    The step is None while starts are compared.
    """

    number: int
    step: int | None
    image: Tensor  # (3, H, W) in [0, 1]


@dataclass(eq=False)
class Job:
    """One click on "Draw": a command for each model.

    Attributes:
        tool: whose command it is.
        values: the settings, by label.
        models: the model of each picture.
        outputs: where each picture is written, as a PNG.
        stop: set to end it. An ascent that runs keeps its best so far.
        preview: the newest one, if there is one.
        future: raises what the command raised.
    """

    tool: Tool
    values: Mapping[str, Value]
    models: Sequence[str]
    outputs: Sequence[Path]
    stop: Event = field(default_factory=Event)
    preview: Preview | None = None
    future: "Future[None]" = field(default_factory=Future)

    def wait(self, seconds: float) -> None:
        """Wait until it ends, or for so many seconds."""
        wait([self.future], seconds)

    def files(self) -> list[Path]:
        """Return the files that it has written."""
        files = [path.with_suffix(end) for path in self.outputs for end in self.tool.endings]
        return [path for path in files if path.is_file()]

    def watch(self, number: int) -> Callable[[int, Tensor, Tensor], bool]:
        """Return the callback of the ascent of that picture."""

        def call(step: int, images: Tensor, losses: Tensor) -> bool:
            best = images[int(losses.argmin())]
            self.preview = Preview(number, step, best.detach().cpu())
            return self.stop.is_set()

        return call

    def show_start(self, number: int) -> Callable[[Tensor], None]:
        """Return what shows starts of that picture while they are compared."""

        def call(images: Tensor) -> None:
            self.preview = Preview(number, None, images[0].detach().cpu())

        return call


@dataclass(eq=False)
class Session:
    """One open page: its folder, its pictures from new to old, and its job if one runs."""

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    settings: dict[Path, Mapping[str, Value]] = field(default_factory=dict)
    job: Job | None = None

    @property
    def busy(self) -> bool:
        """Whether a job of this page runs or waits."""
        return self.job is not None and not self.job.future.done()

    def delete(self) -> None:
        """Delete its files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def collect(self, job: Job) -> None:
        """Add a job's pictures to the session's; the oldest go when there are too many."""
        for path in job.outputs:
            if path.is_file() and path not in self.pictures:
                self.pictures.insert(0, path)
                self.settings[path] = job.values
        for path in self.pictures[MOST_PICTURES:]:
            for end in job.tool.endings:
                path.with_suffix(end).unlink(missing_ok=True)
            self.settings.pop(path, None)
        del self.pictures[MOST_PICTURES:]


class Studio:
    """Runs the jobs of all pages, one at a time, in the order of the clicks.

    Args:
        parsers: the parser of each command, by name.
        device: --device of every command; None is the command's own choice.
        downloads: whether a job may fetch a model that is not cached.
    """

    def __init__(
        self,
        parsers: Mapping[str, argparse.ArgumentParser],
        device: str | None = None,
        downloads: bool = True,
    ):
        self.parsers = parsers
        self.device = device
        self.downloads = downloads
        self.folder = Path(tempfile.mkdtemp(prefix="clipag-studio-"))
        self._worker = ThreadPoolExecutor(1, "studio")
        self._jobs: deque[Job] = deque()
        self._load = lru_cache(KEPT_MODELS)(load_model)

    def close(self) -> None:
        """Stop all jobs, and delete the folders of all sessions."""
        for job in self._jobs:
            job.stop.set()
        self._worker.shutdown(cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_session(self) -> Session:
        """Return a session with a folder of its own."""
        return Session(Path(tempfile.mkdtemp(dir=self.folder)))

    def warm_up(self, model: str) -> None:
        """Load a model and the libraries that its first step imports, when no job waits."""
        tool_words = ["--steps=1", "--tries=1", "--size=32", f"--model={model}", "a dot"]
        self._worker.submit(self._warm_up, tool_words)

    def start(
        self, session: Session, tool: Tool, models: Sequence[str], values: Mapping[str, Value]
    ) -> Job:
        """Put a job at the end of the line.

        Raises:
            ClipagError: the page's last job still runs, too many jobs wait, or a model is not here.
        """
        self._jobs = deque(job for job in self._jobs if not job.future.done())
        if session.busy:
            raise ClipagError("This page is still at work: stop that first.")
        if len(self._jobs) >= MOST_JOBS:
            raise ClipagError(f"{MOST_JOBS} jobs are waiting: try again later.")
        for model in models:
            if not self.downloads and model in MODELS and not is_cached(model):
                raise ClipagError(
                    f"{model} is not on this machine: its owner can fetch it with clipag pull "
                    f"{model}."
                )
        if "--" in values.values():
            raise ClipagError("There is only '--' for a text: say it in words.")
        name = slug(str(values.get("Prompt") or values.get("Style") or tool.command)) or "picture"
        folder = Path(tempfile.mkdtemp(dir=session.folder))
        names = [f"{name}-{slug(model)}" for model in models]
        job = Job(tool, values, models, [folder / f"{each}.png" for each in names])
        session.job = job
        self._jobs.append(job)
        job.future = self._worker.submit(self._run, job)
        return job

    def ahead_of(self, job: Job) -> int:
        """Return the number of jobs that run before this one."""
        unfinished = [each for each in self._jobs if not each.future.done()]
        return unfinished.index(job) if job in unfinished else 0

    def _run(self, job: Job) -> None:
        """Run the command of each picture until the job is stopped."""
        options, arguments = job.tool.words(job.values)
        for number, (model, output) in enumerate(zip(job.models, job.outputs, strict=True)):
            if job.stop.is_set():
                return
            words = [word for option in options for word in option]
            words += [f"{job.tool.model_option}={model}"]
            words += [f"--out={output.with_suffix(job.tool.endings[0])}"]
            host = Host(self._model, job.watch(number), job.show_start(number))
            self._call(job.tool.command, [*words, "--", *arguments], host)

    def _call(self, command: str, words: Sequence[str], host: Host) -> None:
        """Run a command in this thread.

        Raises:
            ClipagError: its input is bad, or its parser refuses the words.
        """
        try:
            options = self.parsers[command].parse_args(join_sizes([command, *words])[1:])
        except SystemExit as error:  # argparse's, which has printed why
            raise ClipagError("These settings do not go together: choose others.") from error
        options.device = self.device
        options.host = host
        options.run(options)

    def _model(self, name: str, device: torch.device) -> ClipagModel:
        return self._load(name, device)

    def _warm_up(self, words: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            host = Host(self._model, lambda *_: False, lambda _: None)
            self._call("generate", [f"--out={folder}/dot.png", *words], host)
