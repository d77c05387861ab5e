"""Put the nodes and their example workflows into a ComfyUI."""

import shutil
from pathlib import Path

from clipag_plugins.errors import ClipagError
from clipag_plugins.files import require_writable_folder, write_beside

FOLDER = "clipag-plugins"
WORKFLOWS = Path(__file__).parent / "workflows"
TEMPLATES = "example_workflows"  # the folder that ComfyUI's Browse Templates shows
PACK = '''\
"""The nodes of clipag-plugins, which `clipag comfyui --install` put here.

They are updated with the package: pip install --upgrade clipag-plugins.
"""

from clipag_plugins.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
'''


def install(comfyui: Path) -> Path:
    """Write a pack of a few lines, which loads the nodes, and the workflows; return its file.

    Args:
        comfyui: the folder of ComfyUI, in which `custom_nodes` is.

    Raises:
        ClipagError: it is no ComfyUI, cannot be written to, or has this repository already.
    """
    nodes = comfyui / "custom_nodes"
    if not ((comfyui / "nodes.py").is_file() and nodes.is_dir()):
        raise ClipagError(
            f"{comfyui} is no ComfyUI: name the folder with its main.py and custom_nodes."
        )
    require_writable_folder(nodes)
    folder = nodes / FOLDER
    if (folder / "pyproject.toml").exists():
        raise ClipagError(f"{folder} is a clone of clipag-plugins, whose nodes ComfyUI loads.")
    with write_beside(folder / "__init__.py") as temporary:
        temporary.write_text(PACK, encoding="utf-8")
    (folder / TEMPLATES).mkdir(exist_ok=True)
    for workflow in WORKFLOWS.glob("*.json"):
        with write_beside(folder / TEMPLATES / workflow.name) as temporary:
            shutil.copyfile(workflow, temporary)
    return folder / "__init__.py"
