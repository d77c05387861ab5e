"""clipag comfyui: the nodes for ComfyUI."""

import argparse
from pathlib import Path

from .options import Commands, command

EXAMPLES = """\
examples:
  clipag comfyui --install ~/ComfyUI           then restart ComfyUI: the nodes are under CLIPAG

Run it with the Python that runs ComfyUI.
"""


def add(commands: Commands) -> None:
    """Describe `clipag comfyui`."""
    comfyui = command(commands, "comfyui", "put the nodes into ComfyUI", EXAMPLES)
    comfyui.set_defaults(run=_run)
    comfyui.add_argument(
        "--install",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder of a ComfyUI, with its main.py and custom_nodes",
    )


def _run(options: argparse.Namespace) -> int:
    from ..integrations.comfyui.install import install

    print(install(options.install))
    return 0
