"""clipag studio: a local page to draw on."""

import argparse
import sys
from collections.abc import Mapping

from ..errors import library
from .options import DEVICE_HELP, Commands, command

EXAMPLES = """\
examples:
  clipag studio                            open the address that it prints in a browser
  clipag studio --model ViT-B/32           with the authors' CLIPAG chosen first
  clipag studio --host 0.0.0.0 --no-downloads    for others in the network: there is no password

Needs pip install 'clipag-plugins[studio]'.
"""
ALONE = ("127.0.0.1", "localhost", "::1")  # addresses that only this machine reaches


def add(commands: Commands) -> None:
    """Describe `clipag studio`."""
    studio = command(commands, "studio", "open a page to draw on, in a browser", EXAMPLES)
    parsers: Mapping[str, argparse.ArgumentParser] = commands.choices
    studio.set_defaults(run=lambda options: _run(options, parsers))
    add = studio.add_argument
    add("--model", help="the model that is chosen first (default: what suits each tab)")
    add("--device", help=DEVICE_HELP)
    add(
        "--host",
        default=ALONE[0],
        help="address to listen at: 127.0.0.1 is for this machine alone, 0.0.0.0 lets everyone in "
        "who can reach it, without a password (default: %(default)s)",
    )
    add("--port", type=int, help="port to listen at (default: the first free one from 7860)")
    add("--browser", action="store_true", help="open the page in a browser")
    add(
        "--downloads",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let a click fetch a model that is not on this machine (default: only for this "
        "machine alone)",
    )


def _run(options: argparse.Namespace, parsers: Mapping[str, argparse.ArgumentParser]) -> int:
    library("gradio", "studio")

    from ..studio.jobs import Studio
    from ..studio.server import launch

    is_alone = options.host in ALONE
    if not is_alone:
        print(
            f"clipag: whoever reaches {options.host} can draw here, without a password.",
            file=sys.stderr,
        )
    downloads = is_alone if options.downloads is None else options.downloads
    studio = Studio(parsers, options.device, downloads)
    try:
        launch(studio, options.model, options.host, options.port, options.browser)
    finally:
        studio.close()
    return 0
