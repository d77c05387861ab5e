"""A second device where there is no GPU: its tensors compute on the CPU and claim to be elsewhere.

Inside `elsewhere()` it is called meta, a name that every torch has. As with a GPU, its tensors do
not mix with the CPU's, do not turn into numpy arrays, and draw no numbers from the CPU's generator.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
# Their indices may be the CPU's.
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
           aten._index_put_impl_.default)  # fmt: skip


class Away(Tensor):
    """A tensor that is not on the CPU, by what it says; `held` is."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        return Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device="meta",
        )  # fmt: skip

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with Mode():
            return func(*args, **(kwargs or {}))


class Mode(TorchDispatchMode):
    """Computes on the CPU what is asked of another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        away = {id(x.held): x for x in tensors if isinstance(x, Away)}
        here = [x for x in tensors if not isinstance(x, Away) and x.ndim > 0]
        if func in INDEXED and isinstance(args[0], Away):
            here = [x for x in args[2:3] if not isinstance(x, Away) and x.ndim > 0]
        device = kwargs.get("device")
        if away and here and func not in MOVES:
            raise RuntimeError(f"{func} is given tensors of the CPU and of another device")
        leaves = bool(away) if device is None else torch.device(device).type == "meta"
        if leaves and kwargs.get("generator") is not None:
            raise RuntimeError(f"{func} is given the CPU's generator for another device")
        if device is not None:
            kwargs["device"] = "cpu"
        args, kwargs = tree_map(lambda x: x.held if isinstance(x, Away) else x, (args, kwargs))
        found = func(*args, **kwargs)
        if not leaves:
            return found

        def wrapped(x):
            if not isinstance(x, Tensor):
                return x
            return away[id(x)] if id(x) in away else Away(x)  # changed in place, or new

        return tree_map(wrapped, found)


@contextmanager
def elsewhere():
    """Make the device meta one that computes."""
    on_cpu, as_list = torch.tensor, Tensor.tolist

    # These three do not ask a mode.
    def tensor(data, *, dtype=None, device=None):
        return on_cpu(data, dtype=dtype).to(device or "cpu")

    def new_tensor(self, data, *, dtype=None, device=None):
        return on_cpu(data, dtype=dtype or self.dtype).to(device or self.device)

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
