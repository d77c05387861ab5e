"""The nodes for ComfyUI, for a clone of this repository in its `custom_nodes/`."""

import sys
from pathlib import Path

# Last, so that an installed clipag_plugins, and ComfyUI's own modules, come first.
sys.path.append(str(Path(__file__).parent))

from clipag_plugins.integrations.comfyui import (
    NODE_CLASS_MAPPINGS,
    NODE_DISPLAY_NAME_MAPPINGS,
)

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
