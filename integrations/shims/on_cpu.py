"""Run code that asks for "cuda" on the CPU.

Almost every way to place a tensor (`.cuda()`, `.to("cuda")`, `torch.zeros(…, device=0)`, whole
modules) goes through torch's override protocol. One TorchFunctionMode therefore maps the device in
all of them, C functions included, under whatever name a script imported them. What bypasses the
protocol is replaced by name: `torch.device` and `torch.Generator`, so that `device.type` is right,
and a short list of functions that query or set the driver.

Like all torch modes, this one applies only in the thread that called `install`.
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


def cuda_to_cpu(value: Any) -> Any:
    """Return the CPU for a value that names a CUDA device, and any other value unchanged."""
    if isinstance(value, str) and _CUDA.fullmatch(value):
        return "cpu"
    if isinstance(value, _real_device) and value.type == "cuda":
        return _real_device("cpu")
    return value


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class OnCpu(TorchFunctionMode):
    """Replaces "cuda" by "cpu" in the arguments of every torch function."""

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
            key: "cpu" if key == "device" and _is_index(value) else cuda_to_cpu(value)
            for key, value in (kwargs or {}).items()
        }
        return func(*map(cuda_to_cpu, args), **options)


def _never_cuda(real: Any) -> type:
    """Return a substitute for one of torch's final classes that maps CUDA devices to the CPU."""

    class Meta(type):
        def __call__(cls, *arguments: Any, **options: Any) -> Any:
            # device("cuda", 1) must lose its index as well: the CPU has none.
            if arguments and (_is_index(arguments[0]) or arguments[0] == "cuda"):
                return real("cpu")
            return _call_on_cpu(real, arguments, options)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, real)

    return Meta(real.__name__, (), {"__module__": real.__module__, "__doc__": real.__doc__})


def patch(patches: Patches) -> None:
    """Make this process run on the CPU what its code asks of a GPU."""
    patches.enter(OnCpu())
    patches.set(torch, "device", _never_cuda(torch.device))
    patches.set(torch, "Generator", _never_cuda(torch.Generator))
    patches.set(torch, "set_default_device", _map_devices(torch.set_default_device))
    _patch_default_tensor_type(patches)
    for module in (torch, torch.jit):
        _patch_load(patches, module)

    properties = SimpleNamespace(
        name="CPU", total_memory=0, major=0, minor=0, multi_processor_count=0
    )
    results = {
        "is_available": False,
        "device_count": 0,
        "current_device": 0,
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "get_device_capability": (0, 0),
        "mem_get_info": (0, 0),
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "is_bf16_supported": False,
    }
    for name, result in results.items():
        patches.set(torch.cuda, name, lambda *_, result=result, **__: result)
    for dtype in _DTYPES:
        patches.set(torch.cuda, f"{dtype}Tensor", getattr(torch, f"{dtype}Tensor"))
    patches.report("device cpu: code that asks for cuda runs on the CPU")


def _call_on_cpu(function: Any, arguments: Any, options: dict[str, Any]) -> Any:
    mapped = {key: cuda_to_cpu(value) for key, value in options.items()}
    return function(*map(cuda_to_cpu, arguments), **mapped)


def _map_devices(function: Any) -> Any:
    @wraps(function)
    def on_cpu(*arguments: Any, **options: Any) -> Any:
        return _call_on_cpu(function, arguments, options)

    return on_cpu


def _patch_default_tensor_type(patches: Patches) -> None:
    real = torch.set_default_tensor_type

    @wraps(real)
    def set_default_tensor_type(t: Any) -> None:
        real(t.replace("torch.cuda.", "torch.") if isinstance(t, str) else t)

    patches.set(torch, "set_default_tensor_type", set_default_tensor_type)


def _patch_load(patches: Patches, module: ModuleType) -> None:
    """Load checkpoints that were saved on a GPU as well."""
    real = module.load

    @wraps(real)
    def load(f: Any, map_location: Any = None, *arguments: Any, **options: Any) -> Any:
        location = "cpu" if map_location is None else cuda_to_cpu(map_location)
        return real(f, location, *arguments, **options)

    patches.set(module, "load", load)
