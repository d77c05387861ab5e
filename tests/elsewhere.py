"""A pretended second device for tests without a GPU: it computes on the CPU.

Inside `elsewhere()` its name is "meta", which every torch knows. As with a GPU, its tensors cannot
be mixed with the CPU's, cannot become numpy arrays, and cannot use the CPU's random generator.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
# These operations take indices on the CPU.
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
           aten._index_put_impl_.default)  # fmt: skip


class Away(Tensor):
    """A tensor that claims to be on the pretended device; `on_cpu` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu):
        return Tensor._make_wrapper_subclass(
            cls, on_cpu.size(), strides=on_cpu.stride(), storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype, device="meta",
        )  # fmt: skip

    def __init__(self, on_cpu):
        self.on_cpu = on_cpu

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with Mode():
            return func(*args, **(kwargs or {}))


class Mode(TorchDispatchMode):
    """Computes the pretended device's operations on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        away = {id(x.on_cpu): x for x in tensors if isinstance(x, Away)}
        on_cpu = [x for x in tensors if not isinstance(x, Away) and x.ndim > 0]
        if func in INDEXED and isinstance(args[0], Away):
            on_cpu = [x for x in args[2:3] if not isinstance(x, Away) and x.ndim > 0]
        device = kwargs.get("device")
        if away and on_cpu and func not in MOVES:
            raise RuntimeError(f"{func} is given tensors of the CPU and of another device")
        result_is_away = bool(away) if device is None else torch.device(device).type == "meta"
        if result_is_away and kwargs.get("generator") is not None:
            raise RuntimeError(f"{func} is given the CPU's generator for another device")
        if device is not None:
            kwargs["device"] = "cpu"
        args, kwargs = tree_map(lambda x: x.on_cpu if isinstance(x, Away) else x, (args, kwargs))
        result = func(*args, **kwargs)
        if not result_is_away:
            return result

        def wrapped(x):
            if not isinstance(x, Tensor):
                return x
            return away[id(x)] if id(x) in away else Away(x)  # changed in place, or new

        return tree_map(wrapped, result)


@contextmanager
def elsewhere():
    """Make the device "meta" compute."""
    tensor_on_cpu, as_list = torch.tensor, Tensor.tolist

    # No TorchDispatchMode sees these three.
    def tensor(data, *, dtype=None, device=None):
        return tensor_on_cpu(data, dtype=dtype).to(device or "cpu")

    def new_tensor(self, data, *, dtype=None, device=None):
        return tensor_on_cpu(data, dtype=dtype or self.dtype).to(device or self.device)

    def tolist(self):
        return as_list(self.cpu())

    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch.object(torch, "tensor", tensor),
            mock.patch.object(Tensor, "new_tensor", new_tensor),
            mock.patch.object(Tensor, "tolist", tolist),
            Mode(),
        ):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
