"""ComfyUI inside this process, for benchmarks that need its classes or many pictures."""

import sys
from pathlib import Path
from typing import Any

import torch

from clipag_plugins.integrations.comfyui import NODE_CLASS_MAPPINGS


def start_comfyui(folder: Path) -> Any:
    """Import ComfyUI into this process, and return its module `nodes`.

    Call it once, before anything imports `comfy`: ComfyUI reads the command line.

    Args:
        folder: of a ComfyUI, with main.py.
    """
    sys.path.insert(0, str(folder))
    arguments, sys.argv = sys.argv, [sys.argv[0], *([] if torch.cuda.is_available() else ["--cpu"])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import nodes

    sys.argv = arguments
    return nodes


def node(name: str, **inputs: Any) -> Any:
    """Run one of our nodes as ComfyUI does, and return its first output.

    Args:
        name: as in a workflow, such as "ClipagTextTarget".
        inputs: sockets and widgets. The other widgets have their defaults.
    """
    kind: Any = NODE_CLASS_MAPPINGS[name]
    described = kind.INPUT_TYPES()["required"]
    defaults = {key: each[1]["default"] for key, each in described.items() if "default" in each[1]}
    with torch.inference_mode():
        return kind().run(**{**defaults, **inputs})[0]
