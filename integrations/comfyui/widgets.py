"""What a node's widgets are: dataclass fields that also describe themselves to ComfyUI.

A node that has many widgets has a frozen dataclass of them. Its fields give the defaults, and
ComfyUI's INPUT_TYPES are made from them.
"""

from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any

from clipag_plugins.arguments import FIRST_TOO_LARGE_SEED, LARGEST, SMALLEST
from clipag_plugins.defaults import SIDE

# A type of ComfyUI with its options, such as ("INT", {"default": 1}).
Input = tuple[Any, dict[str, Any]]

LARGEST_BATCH = 64


def socket(kind: str, tooltip: str) -> Input:
    """Return an input that another node is connected to."""
    return kind, {"tooltip": tooltip}


def integer(default: int, least: int, most: int, tooltip: str, step: int = 1) -> Any:
    """Return a field for a whole number."""
    options = {"default": default, "min": least, "max": most, "step": step, "tooltip": tooltip}
    return field(default=default, metadata={"input": ("INT", options)})


def number(default: float, least: float, most: float, tooltip: str, step: float = 0.01) -> Any:
    """Return a field for a number."""
    options = {"default": default, "min": least, "max": most, "step": step, "tooltip": tooltip}
    return field(default=default, metadata={"input": ("FLOAT", {**options, "round": False})})


def string(default: str, tooltip: str, multiline: bool = True) -> Any:
    """Return a field for a text, in which {red|green} stands for either, as in ComfyUI's own."""
    options = {
        "default": default, "multiline": multiline, "dynamicPrompts": multiline, "tooltip": tooltip
    }  # fmt: skip
    return field(default=default, metadata={"input": ("STRING", options)})


def choice(names: Sequence[str], default: str, tooltip: str) -> Any:
    """Return a field for one of several words."""
    options = {"default": default, "tooltip": tooltip}
    return field(default=default, metadata={"input": ([*names], options)})


def switch(default: bool, tooltip: str) -> Any:
    """Return a field for yes or no."""
    options = {"default": default, "tooltip": tooltip}
    return field(default=default, metadata={"input": ("BOOLEAN", options)})


def seed_widget() -> Any:
    """Return a field for a seed, which ComfyUI can change after each run."""
    options = {
        "default": 0,
        "min": 0,
        "max": FIRST_TOO_LARGE_SEED - 1,
        "control_after_generate": True,
        "tooltip": "The same seed gives the same picture on the same machine.",
    }
    return field(default=0, metadata={"input": ("INT", options)})


def side_widget(name: str) -> Any:
    """Return a field for the width or the height."""
    tooltip = f"{name} in pixels. A connected picture has its own size, and this is ignored."
    return integer(SIDE, SMALLEST, LARGEST, tooltip, step=8)


def batch_widget() -> Any:
    """Return a field for the number of pictures."""
    return integer(1, 1, LARGEST_BATCH, "Pictures: of this seed, the next, and so on.")


def inputs_of(widgets: type) -> dict[str, Input]:
    """Return the widgets of a dataclass as ComfyUI describes inputs."""
    return {each.name: each.metadata["input"] for each in fields(widgets)}
