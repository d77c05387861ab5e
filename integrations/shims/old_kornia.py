"""The protocol of kornia's augmentations before version 0.7.

`return_transform=True` made an augmentation return its picture together with the matrix of what was
done to it, and a following augmentation take both and multiply the matrices. Subclasses overrode
`apply_transform` without the argument `flags`.
"""

import inspect
from functools import wraps
from types import ModuleType
from typing import Any

from clipag_plugins.integrations.shims.patching import Patches

# Methods that have got an argument `flags`, third after `input` and `params`.
WITH_FLAGS = ("apply_transform", "apply_non_transform", "compute_transformation")


def patch(patches: Patches, module: ModuleType) -> None:
    """Restore the protocol in the module `kornia.augmentation`."""
    from kornia.augmentation.base import _BasicAugmentationBase as base

    classes = {value for value in vars(module).values() if isinstance(value, type)}
    for augmentation in classes:
        if issubclass(augmentation, base) and "__init__" in vars(augmentation):
            constructor = vars(augmentation)["__init__"]
            if "return_transform" not in inspect.signature(constructor).parameters:
                patches.set(
                    augmentation, "__init__", _accept_return_transform(patches, constructor)
                )
    patches.set(base, "__call__", _with_matrices(base.__call__))
    patches.set(base, "__getattr__", _flags_as_attributes(base.__getattr__))
    _adapt_subclasses(patches, base)


def _accept_return_transform(patches: Patches, constructor: Any) -> Any:
    @wraps(constructor)
    def init(self: Any, *arguments: Any, **options: Any) -> None:
        returns_matrix = options.pop("return_transform", None)
        constructor(self, *arguments, **options)
        if returns_matrix is not None:
            patches.report("kornia's return_transform= was removed: using our replacement")
            self._clipag_returns_matrix = returns_matrix

    return init


def _with_matrices(real: Any) -> Any:
    """Wrap an augmentation's `__call__` so that it takes and returns (pictures, matrices)."""

    @wraps(real)
    def call(self: Any, pictures: Any, *arguments: Any, **options: Any) -> Any:
        returns_matrix = getattr(self, "_clipag_returns_matrix", False)
        if not returns_matrix and not isinstance(pictures, tuple):
            return real(self, pictures, *arguments, **options)
        before = None
        if isinstance(pictures, tuple):
            pictures, before = pictures
        changed = real(self, pictures, *arguments, **options)
        if not returns_matrix:
            return changed, before
        matrix = self.transform_matrix
        return changed, matrix if before is None else matrix @ before

    return call


def _flags_as_attributes(real: Any) -> Any:
    """Wrap `__getattr__` so that `resample` and other flags are attributes, as before 0.6."""

    @wraps(real)
    def getattribute(self: Any, name: str) -> Any:
        flags = vars(self).get("flags", {})
        return flags[name] if name in flags else real(self, name)

    return getattribute


def _adapt_subclasses(patches: Patches, base: type) -> None:
    """Let a script's subclasses override methods without `flags`."""
    inherited: Any = vars(base).get("__init_subclass__")

    def init_subclass(cls: Any, /, **options: Any) -> None:
        if inherited is not None:
            inherited.__func__(cls, **options)
        for name in WITH_FLAGS:
            method = vars(cls).get(name)
            if inspect.isfunction(method) and "flags" not in inspect.signature(method).parameters:
                patches.report(f"kornia's {name} now takes flags: called without them")
                setattr(cls, name, _without_flags(method))

    patches.set(base, "__init_subclass__", classmethod(init_subclass))


def _without_flags(method: Any) -> Any:
    takes_matrix = len(inspect.signature(method).parameters) > 3

    @wraps(method)
    def call(self: Any, input: Any, params: Any, flags: Any = None, transform: Any = None) -> Any:
        return method(self, input, params, *([transform] if takes_matrix else []))

    return call
