"""What is on the studio's page: Gradio's components."""

import html
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import gradio as gr

from ..files import slug
from ..hub import is_cached
from ..registry import MODELS
from .controls import Control
from .tools import Tool


@dataclass(frozen=True)
class Outputs:
    """The components that show a job, which all tabs share."""

    status: Any
    pictures: tuple[Any, Any]
    files: Any
    command: Any
    gallery: Any

    def all(self) -> list[Any]:
        """Return them in the order of what `Page.run` yields."""
        return [self.status, *self.pictures, self.files, self.command, self.gallery]


def form(tool: Tool) -> tuple[Any, list[Any]]:
    """Make the button and the components of a tab; return them in the order of its controls."""
    shown = [control for control in tool.controls if not control.more]
    components = _components(shown, tool)
    if len(shown) < len(tool.controls):
        with gr.Accordion("More settings", open=False):
            components |= _components([each for each in tool.controls if each.more], tool)
    button = gr.Button(tool.verb, variant="primary", elem_id=f"run-{tool.command}")
    return button, [components[control] for control in tool.controls]


def _components(controls: Sequence[Control], tool: Tool) -> dict[Control, Any]:
    """Make components, with numbers that follow one another side by side."""
    components: dict[Control, Any] = {}
    for is_number, group in groupby(controls, lambda each: each.kind in ("whole", "number")):
        with gr.Row() if is_number else nullcontext():
            components |= {control: _component(control, tool) for control in group}
    return components


def _component(control: Control, tool: Tool) -> Any:
    name = f"{tool.command}-{slug(control.label)}"
    common: dict[str, Any] = {"label": control.label, "elem_id": name}
    if control.kind != "picture":
        common["info"] = control.help or None
    if control.kind == "text":
        return gr.Textbox(str(control.default), max_length=1000, **common)
    if control.kind in ("whole", "number"):
        least, most = control.limits
        least = 0 if control.default is None else least  # a browser sends 0 for an empty field
        precision = 0 if control.kind == "whole" else None
        return gr.Number(
            control.default or 0,
            minimum=least,
            maximum=most,
            precision=precision,
            min_width=100,
            **common,
        )
    if control.kind == "choice":
        return gr.Dropdown(list(control.choices), value=control.default, **common)
    if control.kind == "switch":
        return gr.Checkbox(bool(control.default), **common)
    picture = gr.Image(
        type="filepath", image_mode=None, sources=["upload", "clipboard"], height=220, buttons=[],
        **common,
    )  # fmt: skip
    # Gradio would decode the file before its size is checked.
    picture.preprocess = lambda upload: None if upload is None else upload.path
    return picture


def output_column() -> tuple[Outputs, Any]:
    """Make the components that show a job, and the button that stops it."""
    status = gr.HTML(message("Ready."), elem_id="status")
    stop = gr.Button("Stop, and keep the best", elem_id="stop")
    with gr.Row():
        pictures = (
            gr.Image(label="Picture", interactive=False, height=448, elem_id="picture",
                     alt_text="the picture so far", buttons=["fullscreen"], format="png"),
            gr.Image(label="Vanilla", interactive=False, height=448, visible=False,
                     elem_id="vanilla", alt_text="the vanilla model's picture so far",
                     buttons=["fullscreen"], format="png"),
        )  # fmt: skip
    files = gr.File(label="Download", interactive=False, file_count="multiple", visible=False,
                    elem_id="files")  # fmt: skip
    command = gr.Textbox(
        "", label="The same in a terminal", interactive=False, buttons=["copy"], elem_id="command"
    )
    gallery = gr.Gallery(
        label="Pictures of this page", show_label=False, columns=6, height=240,
        fit_columns=False,
        allow_preview=False, interactive=False, buttons=[], render=False, elem_id="gallery",
    )  # fmt: skip
    return Outputs(status, pictures, files, command, gallery), stop


def gallery_row(outputs: Outputs) -> Any:
    """Show the gallery, and return the place to drop a PNG."""
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            gr.Markdown("Pictures of this page: click one, and its settings come back.")
            outputs.gallery.render()
        with gr.Column(scale=1, min_width=240):
            gr.Markdown("Drop a PNG that any clipag command drew: its settings come back.")
            return gr.File(
                label="PNG of clipag", show_label=False, file_types=[".png"], height=140,
                elem_id="restore",
            )  # fmt: skip


def described(name: str) -> str:
    """Return what the list of models says of one: its size, its source, and whether it is here."""
    source = MODELS.get(name)
    if source is None:
        return f"{name} — a file of this machine"
    kind = "vanilla" if source.threat_model == "none" else f"robust: {source.threat_model}"
    place = "" if source.embedded else ", here" if is_cached(name) else ", not downloaded"
    return f"{name} — {kind}, {source.megabytes} MB, {source.place}{place}"


def message(text: str, is_error: bool = False) -> str:
    """Return HTML of a sentence, which screen readers read out; errors stand out."""
    role, style = ("alert", ' class="error"') if is_error else ("status", "")
    return f'<p role="{role}"{style}>{html.escape(text.replace("`", ""))}</p>'
