"""The studio's page: what happens on a click, on a file that is dropped, and when it closes."""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..defaults import DRAWING_MODEL, MODEL
from ..errors import ClipagError
from ..pictures import UNREADABLE, read_picture, to_pil
from ..registry import MODELS
from .components import described, form, gallery_row, message, output_column
from .controls import Value
from .jobs import TWINS, Job, Session, Studio
from .tools import TOOLS, Tool, models_of, read_settings, shown_command, title_of

SECONDS = 0.15  # between two looks at a job
MOST_SESSIONS = 200  # of which the pictures are kept
SUITED = "suited"  # the choice of the model that a tab's command takes by itself
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
SUITED_LABEL = f"What suits the tab: {DRAWING_MODEL}; in Explain and Attack {MODEL}"
TITLE = "clipag studio"
HEADING = "# clipag studio\nType what to draw, and watch the picture come along CLIPAG's gradient."


class Page:
    """The page of a studio.

    Args:
        studio: runs the jobs.
        model: the model that is chosen first; by default what suits each tab.
    """

    def __init__(self, studio: Studio, model: str | None = None):
        self.studio = studio
        self.first = model or SUITED
        self.model_names = list(dict.fromkeys([*([model] if model else []), *MODELS]))
        self.sessions: dict[str, Session] = {}

    def build(self) -> Any:
        """Return the page, as Gradio's Blocks."""
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
            gr.Markdown(HEADING)
            with gr.Row():
                with gr.Column(min_width=320):
                    choices = [(described(name), name) for name in self.model_names]
                    model = gr.Dropdown(
                        [(SUITED_LABEL, SUITED), *choices], value=self.first, label="Model"
                    )
                    vanilla = gr.Checkbox(
                        False, label="Vanilla beside it", info="the same by a CLIP not made robust"
                    )
                    forms = {}
                    with gr.Tabs() as tabs:
                        for tool in TOOLS:
                            with gr.Tab(tool.name, id=tool.command):
                                forms[tool] = form(tool)
                with gr.Column(min_width=320):
                    outputs, stop = output_column()
            dropped = gallery_row(outputs)
            for tool, (button, controls) in forms.items():
                texts = [each for each in controls if isinstance(each, gr.Textbox)]
                gr.on(
                    [button.click, *(text.submit for text in texts)],
                    self.runner(tool),
                    [model, vanilla, *controls],
                    outputs.all(),
                    scroll_to_output=True,
                    trigger_mode="once",
                    concurrency_limit=None,  # jobs wait in the studio's own line
                    **QUIET,
                )
            stop.click(self.leave, None, None, queue=False, **QUIET)
            settings = [each for _, controls in forms.values() for each in controls]
            restored = [outputs.status, model, vanilla, tabs, *settings]
            shown = [*outputs.pictures, outputs.files, outputs.command]
            outputs.gallery.select(self.select, None, [*restored, *shown], queue=False, **QUIET)
            dropped.upload(self.drop, dropped, [*restored, dropped], queue=False, **QUIET)
            page.unload(self.leave)
        return page

    def session(self, request: gr.Request) -> Session:
        """Return the session of a page, which a page has from its first request on."""
        name = str(request.session_hash)
        if name not in self.sessions:
            idle = [other for other, session in self.sessions.items() if not session.busy]
            if len(self.sessions) >= MOST_SESSIONS and idle:
                self.sessions.pop(idle[0]).delete()
            self.sessions[name] = self.studio.new_session()
        return self.sessions[name]

    def leave(self, request: gr.Request) -> None:
        """Stop the job of a page, which may have been closed. What is best so far is kept."""
        session = self.sessions.get(str(request.session_hash))
        if session is not None and session.job is not None:
            session.job.stop.set()

    def runner(self, tool: Tool) -> Callable[..., Iterator[list[Any]]]:
        """Return the handler of a tab's button."""

        def run(
            request: gr.Request, model: str, vanilla: bool, *values: Value
        ) -> Iterator[list[Any]]:
            session = self.session(request)
            settings = {
                control.label: value for control, value in zip(tool.controls, values, strict=True)
            }
            try:
                name = tool.model if model == SUITED else model
                names = [name, *([_twin(name)] if vanilla else [])]
                _check_pictures(tool, settings)
                job = self.studio.start(session, tool, names, settings)
            except ClipagError as error:
                yield [message(str(error), is_error=True), *[gr.skip()] * 5]
                return
            try:
                yield from self.follow(session, job)
            finally:
                job.stop.set()  # if the page went away

        return run

    def follow(self, session: Session, job: Job) -> Iterator[list[Any]]:
        """Yield what the page shows of a job, from its start to its end."""
        empty = gr.Image(None)
        second = gr.Image(None, visible=len(job.models) > 1)
        line_before = "Starting."
        yield [message(line_before), empty, second, gr.File(None, visible=False), "", gr.skip()]
        shown = None
        while not job.future.done():
            job.wait(SECONDS)
            if job.preview is not None and job.preview is not shown:
                shown = job.preview
                pictures: list[Any] = [gr.skip(), gr.skip()]
                pictures[shown.number] = to_pil(shown.image)
                phase = "Choosing a start" if shown.step is None else f"Step {shown.step}"
                line = f"{phase}, {job.models[shown.number]}."
                yield [message(line), *pictures, *[gr.skip()] * 3]
            elif shown is None:
                ahead = self.studio.ahead_of(job)
                line = f"Waiting: {ahead} before this." if ahead else "Starting."
                if line != line_before:
                    line_before = line
                    yield [message(line), *[gr.skip()] * 5]
        session.collect(job)
        command = self.command(job.tool, job.models[0], job.values)
        yield [_outcome(job), *_final(job), command, _gallery(session)]

    def command(self, tool: Tool, model: str, values: Mapping[str, Value]) -> str:
        """Return the command that a user would type for these settings."""
        return shown_command(tool, model, values, self.studio.parsers[tool.command])

    def select(self, event: gr.SelectData, request: gr.Request) -> list[Any]:
        """Load the settings of a picture in the gallery, and show it."""
        session = self.session(request)
        path = session.pictures[event.index]
        files = [str(each) for each in (path.with_suffix(".svg"), path) if each.is_file()]
        values = session.settings[path]
        metadata = _metadata(path)
        command = self.command(read_settings(metadata)[0], models_of(metadata)[0], values)
        updates = self.restore(str(path), values)
        hidden = gr.Image(visible=False)
        return [*updates, str(path), hidden, gr.File(files, visible=True), command]

    def drop(self, path: str) -> list[Any]:
        """Load the settings of a PNG that was dropped, and make room for the next."""
        return [*self.restore(path), None]

    def restore(self, path: str, known: Mapping[str, Value] | None = None) -> list[Any]:
        """Return updates of the status and of all settings, as the metadata of a PNG say.

        Args:
            path: the PNG.
            known: settings by label that are surer than the metadata.
        """
        try:
            metadata = _metadata(Path(path))
            tool, values = read_settings(metadata)
        except ClipagError as error:
            skipped = 3 + sum(len(tool.controls) for tool in TOOLS)
            return [message(str(error), is_error=True), *[gr.skip()] * skipped]
        values |= known or {}
        sentence = f"The settings of {title_of(metadata)!r} are in {tool.name}."
        name = next(iter(models_of(metadata)), "")
        is_known = name in self.model_names
        if not is_known:
            sentence += f" Its model, {name or 'unknown'}, is not in the list."
        if not known and any(control.kind == "picture" for control in tool.controls):
            sentence += " A picture that it was made from has to be dropped again."
        return [
            message(sentence),
            gr.update(value=name) if is_known else gr.skip(),
            gr.update(value=False),
            gr.Tabs(selected=tool.command),
            *(
                gr.update(value=values[control.label]) if each is tool else gr.skip()
                for each in TOOLS
                for control in each.controls
            ),
        ]


def _twin(model: str) -> str:
    if model not in TWINS:
        raise ClipagError(
            f"There is no vanilla twin of {model}: untick it, or choose one of {', '.join(TWINS)}."
        )
    return TWINS[model]


def _check_pictures(tool: Tool, settings: Mapping[str, Value]) -> None:
    """Raise ClipagError if a photo is missing, or an uploaded file is not a picture."""
    for control in tool.controls:
        if control.kind != "picture":
            continue
        value = settings[control.label]
        if value:
            path = Path(str(value))
            try:
                read_picture(path)
            except ClipagError as error:
                # Where files are on this machine is nobody's business.
                raise ClipagError(str(error).replace(str(path), path.name)) from error
        elif control.option == "":
            raise ClipagError(f"There is no {control.label.lower()}: drop one first.")


def _metadata(path: Path) -> dict[str, str]:
    """Return the texts that a PNG carries; its pixels are not decoded.

    Raises:
        ClipagError: it is not a PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as file:
            return {key: str(text) for key, text in getattr(file, "text", {}).items()}
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise ClipagError(f"{path.name} is not a PNG: drop one that clipag wrote.") from error


def _outcome(job: Job) -> str:
    """Return what the page says at the end of a job."""
    error = None if job.future.cancelled() else job.future.exception()
    if isinstance(error, ClipagError | OSError):
        return message(str(error), is_error=True)
    if error is not None:
        traceback.print_exception(error, file=sys.stderr)
        return message("This went wrong: the terminal of clipag studio says why.", is_error=True)
    if not job.files():
        return message("Stopped before the first step.")
    return message("Stopped: this is the best so far." if job.stop.is_set() else "Done.")


def _final(job: Job) -> list[Any]:
    """Return the pictures and the files of a job that ended."""
    pictures: list[Any] = [gr.skip(), gr.skip()]
    for number, output in enumerate(job.outputs):
        if output.is_file():
            pictures[number] = str(output)
    files = [str(path) for path in job.files()]
    return [*pictures, gr.File(files, visible=bool(files))]


def _gallery(session: Session) -> list[tuple[str, str]]:
    """Return the gallery: each picture with its prompt, seed and model."""
    return [(str(path), _caption(_metadata(path))) for path in session.pictures]


def _caption(metadata: Mapping[str, str]) -> str:
    models = " + ".join(models_of(metadata))
    return f"{title_of(metadata)} · seed {metadata.get('seed', '')} · {models}"
