"""Serve the studio's page."""

import os

import gradio as gr

from ..defaults import DRAWING_MODEL
from ..errors import ClipagError
from .jobs import Studio
from .page import Page

LARGEST_UPLOAD = "40mb"
# Gradio's own colours of these have too little contrast.
COLOURS = {
    "block_info_text_color": "*neutral_600",
    "block_label_text_color": "*primary_700",
    "block_title_text_color": "*primary_700",
    "body_text_color_subdued": "*neutral_600",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "color_accent": "*primary_600",
    "link_text_color": "*primary_700",
}
CSS = """
.error { color: #b00020; font-weight: 600; }
.dark .error { color: #ff8a9a; }
.dark button[role="tab"][aria-selected="true"] { color: var(--primary-300); }
.dark #files a { color: var(--primary-300) !important; }
#picture img, #vanilla img { width: 100%; height: 100%; object-fit: contain; }
"""

# Gradio labels its empty pictures without saying that they are pictures.
SCRIPT = """() => {
    const name = () => document.querySelectorAll('[aria-label="Empty value"]:not([role])')
        .forEach(place => place.setAttribute('role', 'img'));
    new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
    name();
}"""


def launch(studio: Studio, model: str | None, host: str, port: int | None, browser: bool) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ClipagError: the address or the port cannot be used.
    """
    # Uploads and copies go into the studio's folder, which is deleted at the end.
    os.environ["GRADIO_TEMP_DIR"] = str(studio.folder / "page")
    page = Page(studio, model).build()
    # Fonts of the machine, so that nothing is fetched from elsewhere.
    theme = gr.themes.Soft(font=["system-ui"], font_mono=["monospace"]).set(**COLOURS)
    studio.warm_up(model or DRAWING_MODEL)
    try:
        _, address, _ = page.queue(max_size=200).launch(
            server_name=host, server_port=port, inbrowser=browser, quiet=True, share=False,
            prevent_thread_lock=True, max_file_size=LARGEST_UPLOAD, ssr_mode=False,
            enable_monitoring=False, run_history=False, footer_links=[], mcp_server=False,
            theme=theme, css=CSS, js=SCRIPT, max_threads=100,
        )  # fmt: skip
    except OSError as error:
        raise ClipagError(
            f"The page cannot be served at {host}, port {port or '7860 to 7959'}: choose another "
            "`host` or `port`."
        ) from error
    print(f"clipag studio: open {address} in a browser; Ctrl-C ends it.", flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)
