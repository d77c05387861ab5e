"""Run code that asks for "cuda" on the CPU.

The functions and methods of torch that take a device are replaced by ones that map "cuda" to
"cpu": the functions that create tensors, a few methods of `Tensor`, `torch.device`,
`torch.Generator`, and what queries or sets the driver. Whole modules move by these methods. The
replacements apply in every thread. A TorchFunctionMode would need no list, but it would make
`has_torch_function` True for plain tensors, and code that asks for it would take another branch.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial, wraps
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.jit._builtins
import torch.utils._device

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


def _map_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments with every CUDA device replaced by the CPU."""
    return {
        key: "cpu" if key == "device" and _is_index(value) else cuda_to_cpu(value)
        for key, value in options.items()
    }


def _map_devices(function: Any) -> Any:
    """Wrap a function so that it takes the CPU for every CUDA device among its arguments."""

    @wraps(function)
    def on_cpu(*arguments: Any, **options: Any) -> Any:
        if "pin_memory" in options:
            options["pin_memory"] = False  # pinning memory needs a driver
        return function(*map(cuda_to_cpu, arguments), **_map_options(options))

    return on_cpu


def _creating_functions() -> Iterator[tuple[ModuleType, str]]:
    """Yield where torch has a function with a `device`, as its module and name."""
    # torch caches this set. It must do so before the functions are replaced, or `with
    # torch.device(…)` would no longer know them.
    constructors = torch.utils._device._device_constructors()
    for module in (torch, torch.fft, torch.nested):
        for name, value in list(vars(module).items()):
            takes_device = name.endswith("_like") or name in ("normal", "from_file")
            if callable(value) and (takes_device or value in constructors):
                yield module, name


def _cuda_method(self: Any, *_: Any, **__: Any) -> Any:
    return self


def _to_method(real: Any) -> Any:
    @wraps(real)
    def to(self: Any, *arguments: Any, **options: Any) -> Any:
        if arguments and _is_index(arguments[0]):
            arguments = ("cpu", *arguments[1:])
        return real(self, *map(cuda_to_cpu, arguments), **_map_options(options))

    return to


def _type_method(real: Any) -> Any:
    @wraps(real)
    def type_(self: Any, dtype: Any = None, *arguments: Any, **options: Any) -> Any:
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.")
        return real(self, dtype, *arguments, **options)

    return type_


_TENSOR_METHODS: dict[str, Callable[[Any], Any]] = {
    "cuda": lambda real: wraps(real)(_cuda_method),
    "pin_memory": lambda real: wraps(real)(_cuda_method),
    "to": _to_method,
    "type": _type_method,
    **dict.fromkeys(
        (
            "new",
            "new_tensor",
            "new_empty",
            "new_empty_strided",
            "new_full",
            "new_ones",
            "new_zeros",
        ),
        _map_devices,
    ),
}


def _patch_placement(patches: Patches) -> None:
    """Replace the functions and methods that place tensors."""
    scripted = torch.jit._builtins._get_builtin_table()
    for module, name in _creating_functions():
        real = getattr(module, name)
        replacement = _map_devices(real)
        patches.set(module, name, replacement)
        # TorchScript knows its functions by their identity.
        operator = torch.jit._builtins._find_builtin(real)
        if operator is not None:
            scripted[id(replacement)] = operator
            patches.on_undo(partial(scripted.pop, id(replacement), None))
    for name, replace in _TENSOR_METHODS.items():
        patches.set(torch.Tensor, name, replace(getattr(torch.Tensor, name)))
    # A module moves by those methods, but torch 2.6 refuses a number before it calls them.
    patches.set(torch.nn.Module, "to", _to_method(torch.nn.Module.to))


def _never_cuda(real: Any) -> type:
    """Return a substitute for one of torch's final classes that maps CUDA devices to the CPU."""

    class Meta(type):
        def __call__(cls, *arguments: Any, **options: Any) -> Any:
            # device("cuda", 1) must lose its index as well: the CPU has none.
            if arguments and (_is_index(arguments[0]) or arguments[0] == "cuda"):
                return real("cpu")
            return real(*map(cuda_to_cpu, arguments), **_map_options(options))

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, real)

    return Meta(real.__name__, (), {"__module__": real.__module__, "__doc__": real.__doc__})


def patch(patches: Patches) -> None:
    """Make this process run on the CPU what its code asks of a GPU."""
    _patch_placement(patches)
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
    patches.set(torch.cuda, "device", nullcontext)
    for dtype in _DTYPES:
        patches.set(torch.cuda, f"{dtype}Tensor", getattr(torch, f"{dtype}Tensor"))
    patches.report("device cpu: code that asks for cuda runs on the CPU")


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
