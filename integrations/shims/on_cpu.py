"""Run code that says "cuda" on the CPU.

Two things are changed, and why no fewer: almost every way to place a tensor (`.cuda()`,
`.to("cuda")`, `torch.zeros(…, device=0)`, whole modules) goes through torch's own override
protocol, so one TorchFunctionMode turns the device round in all of them, C functions included,
whatever name they were imported under. What never reaches that protocol is replaced by name:
`torch.device` itself, so that `device.type` is the truth, and a short list of functions
that ask or tell the driver something.

The mode, like all of torch's, holds in the thread that called `install`.
"""

import re
from functools import wraps
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from clipag_plugins.integrations.shims.patching import Patches

_CUDA = re.compile(r"cuda(:\d+)?")
_DTYPES = ["Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"]
_real_device = torch.device


def here(value: Any) -> Any:
    """Return the CPU for anything that names a GPU, and anything else unchanged."""
    if isinstance(value, str) and _CUDA.fullmatch(value):
        return "cpu"
    if isinstance(value, _real_device) and value.type == "cuda":
        return _real_device("cpu")
    return value


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class OnCpu(TorchFunctionMode):
    """Turns "cuda" into "cpu" in every call of torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _is_index(args[1]):
            args = (args[0], "cpu", *args[2:])
        if func is torch.Tensor.type and len(args) > 1 and isinstance(args[1], str):
            args = (args[0], args[1].replace("torch.cuda.", "torch."), *args[2:])
        options = {
            key: "cpu" if key == "device" and _is_index(value) else here(value)
            for key, value in (kwargs or {}).items()
        }
        return func(*map(here, args), **options)


def _standing_in(real: Any) -> type:
    """Make a class that passes for `real`, one of torch's final classes, and never means a GPU."""

    class Meta(type):
        def __call__(cls, *arguments: Any, **options: Any) -> Any:
            # Also device("cuda", 1): the CPU has no index.
            if arguments and (_is_index(arguments[0]) or arguments[0] == "cuda"):
                return real("cpu")
            return real(
                *map(here, arguments), **{key: here(value) for key, value in options.items()}
            )

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, real)

    return Meta(real.__name__, (), {"__module__": real.__module__, "__doc__": real.__doc__})


def patch(patches: Patches) -> None:
    """Have this process do on the CPU what its code asks of a GPU."""
    patches.enter(OnCpu())
    patches.set(torch, "device", _standing_in(torch.device))
    patches.set(torch, "Generator", _standing_in(torch.Generator))
    patches.set(torch, "set_default_device", _on_cpu(torch.set_default_device))
    _default_type(patches, torch)
    _load(patches, torch)
    _load(patches, torch.jit)

    nothing = SimpleNamespace(name="CPU", total_memory=0, major=0, minor=0, multi_processor_count=0)
    answers = {
        "is_available": False,
        "device_count": 0,
        "current_device": 0,
        "get_device_name": nothing.name,
        "get_device_properties": nothing,
        "get_device_capability": (0, 0),
        "mem_get_info": (0, 0),
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "is_bf16_supported": False,
    }
    for name, value in answers.items():
        patches.set(torch.cuda, name, lambda *_, value=value, **__: value)
    for dtype in _DTYPES:
        patches.set(torch.cuda, f"{dtype}Tensor", getattr(torch, f"{dtype}Tensor"))
    patches.say("--device cpu: whatever asks for cuda gets the CPU")


def _on_cpu(function: Any) -> Any:
    @wraps(function)
    def on_cpu(*arguments: Any, **options: Any) -> Any:
        return function(
            *map(here, arguments), **{key: here(value) for key, value in options.items()}
        )

    return on_cpu


def _default_type(patches: Patches, module: ModuleType) -> None:
    real = torch.set_default_tensor_type

    @wraps(real)
    def set_default_tensor_type(t: Any) -> None:
        real(t.replace("torch.cuda.", "torch.") if isinstance(t, str) else t)

    patches.set(module, "set_default_tensor_type", set_default_tensor_type)


def _load(patches: Patches, module: Any) -> None:
    """Read checkpoints that were saved on a GPU, too."""
    real = module.load

    @wraps(real)
    def load(f: Any, map_location: Any = None, *arguments: Any, **options: Any) -> Any:
        place = "cpu" if map_location is None else here(map_location)
        return real(f, place, *arguments, **options)

    patches.set(module, "load", load)
