"""Reversible changes to a running Python, each reported the first time a script depends on it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ModulePatch = Callable[[ModuleType], None]  # changes a module in place
ModuleFactory = Callable[[ModuleType], ModuleType]  # gets an empty module, returns the one to use
_ABSENT = object()


class Patches:
    """The patches in force; `undo` reverts them, last first.

    A patch imports nothing by itself. A module that is not imported yet is patched when the script
    imports it. A module that no longer exists is created when the script imports it.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._undo = ExitStack()
        self._reported: set[str] = set()

    def report(self, text: str) -> None:
        """Print one line to stderr about a patch that took effect, only the first time."""
        if text not in self._reported and not self._quiet:
            self._reported.add(text)
            print(f"clipag: {text}.", file=sys.stderr)

    def on_undo(self, action: Callable[[], object]) -> None:
        """Register a function for `undo` to call."""
        self._undo.callback(action)

    def undo(self) -> None:
        """Revert every patch."""
        self._undo.close()

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or class."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self.on_undo(
            lambda: delattr(owner, name) if before is _ABSENT else setattr(owner, name, before)
        )

    def restore_names(self, module: ModuleType, names: Mapping[str, Any]) -> None:
        """Make names available again that `module` no longer has.

        Args:
            module: the module that lost them.
            names: the value of each name. A string "package.module:name" stands for that name of
                that module, and is imported only when the script uses it.
        """
        fallback = vars(module).get("__getattr__")

        def get_name(name: str) -> Any:
            if name in names:
                value = names[name]
                if not isinstance(value, str):
                    self.report(f"{module.__name__}.{name} was removed: using our replacement")
                    return value
                source, _, attribute = value.partition(":")
                if source == f"{module.__name__}.{name}":
                    self.report(f"{source} is no longer imported with its package: importing it")
                else:
                    replacement = f"{source}.{attribute}".rstrip(".")
                    self.report(f"{module.__name__}.{name} was removed: using {replacement}")
                source_module = import_module(source)
                return getattr(source_module, attribute) if attribute else source_module
            if fallback is not None:
                return fallback(name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        self.set(module, "__getattr__", get_name)

    def after_import(self, module_patches: Mapping[str, ModulePatch]) -> None:
        """Patch modules by name: imported ones now, the others as soon as they are imported."""
        for name, patch_module in module_patches.items():
            if name in sys.modules:
                patch_module(sys.modules[name])
        self._add_finder(0, _PatchingFinder(module_patches))

    def replace_package(self, name: str, make: ModuleFactory) -> None:
        """Answer every import of the package `name` and its submodules with a module of `make`."""

        def in_package(fullname: str) -> bool:
            return fullname == name or fullname.startswith(f"{name}.")

        replaced = {key: sys.modules.pop(key) for key in list(sys.modules) if in_package(key)}
        self.on_undo(lambda: sys.modules.update(replaced))
        self._add_finder(0, _CreatingFinder(in_package, make))

    def provide_module(self, name: str, fill: ModulePatch, text: str | None) -> None:
        """If no module `name` exists when a script imports it, create it and report `text`, if any.

        `fill` puts the contents into the new module.
        """

        def make(module: ModuleType) -> ModuleType:
            fill(module)
            if text is not None:
                self.report(text)
            return module

        finder = _CreatingFinder(lambda fullname: fullname == name, make)
        self._add_finder(len(sys.meta_path), finder)

    def _add_finder(self, position: int, finder: "_PatchingFinder | _CreatingFinder") -> None:
        sys.meta_path.insert(position, finder)
        self.on_undo(finder.forget)

        def remove() -> None:
            if finder in sys.meta_path:  # other code may have changed the list too
                sys.meta_path.remove(finder)

        self.on_undo(remove)


class _CreatingFinder(MetaPathFinder, Loader):
    """Creates modules that exist in no file."""

    def __init__(self, creates: Callable[[str], bool], make: ModuleFactory):
        self._creates = creates
        self._make = make
        self._created: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if self._creates(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        # `import` returns whatever the loader leaves in sys.modules. `make` may return a module
        # that also has a name of its own.
        name = module.__name__
        sys.modules[name] = self._make(module)
        self._created.append(name)

    def forget(self) -> None:
        for name in self._created:
            module = sys.modules.pop(name, None)
            parent, _, child = name.rpartition(".")
            # A module of another name is an alias; the parent's attribute was there before.
            if parent in sys.modules and getattr(module, "__name__", None) == name:
                vars(sys.modules[parent]).pop(child, None)


class _PatchingFinder(MetaPathFinder):
    """Lets the other finders find a module, and patches the module once it is executed."""

    def __init__(self, module_patches: Mapping[str, ModulePatch]):
        self._module_patches = dict(module_patches)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._module_patches:
            return None
        # Several tables may patch one module, so the finders behind this one include others of its
        # kind.
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else []
        for finder in behind:
            if not isinstance(finder, _CreatingFinder):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None and spec.loader is not None:
                    self._patch_after_execution(spec.loader, self._module_patches[fullname])
                    return spec
        return None

    def _patch_after_execution(self, loader: Any, patch_module: ModulePatch) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch_module(module)

        # Replace the method rather than wrap the loader: libraries read their loader's attributes.
        loader.exec_module = exec_module

    def forget(self) -> None:
        self._module_patches.clear()
