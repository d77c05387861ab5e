"""Changes to a running Python that can all be taken back, and that say so when they matter."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Fill = Callable[[ModuleType], None]
Make = Callable[[ModuleType], ModuleType]
_NOTHING = object()


class Patches:
    """Patches in force. `undo` takes them back, last first.

    Nothing is imported for the sake of a patch: a module that is not there yet is patched when
    the script imports it, and a module that no longer exists is made when the script asks for it.
    """

    def __init__(self) -> None:
        self._undo = ExitStack()
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """Print a line about what was done, the first time only."""
        if text not in self._said:
            self._said.add(text)
            print(f"clipag: {text}.", file=sys.stderr)

    def on_undo(self, action: Callable[[], object]) -> None:
        """Have `action` called by `undo`."""
        self._undo.callback(action)

    def enter(self, context: AbstractContextManager[Any]) -> None:
        """Enter a context that `undo` leaves."""
        self._undo.enter_context(context)

    def undo(self) -> None:
        """Take every patch back."""
        self._undo.close()

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or class."""
        before = vars(owner).get(name, _NOTHING)
        setattr(owner, name, value)
        self.on_undo(
            lambda: delattr(owner, name) if before is _NOTHING else setattr(owner, name, before)
        )

    def put_back(self, module: ModuleType, names: Mapping[str, Any]) -> None:
        """Let `module` answer to names it has lost.

        A value "package.module:name" is looked up when, and only when, the script uses the name.
        """
        answer_before = vars(module).get("__getattr__")

        def answer(name: str) -> Any:
            if name in names:
                value = names[name]
                if not isinstance(value, str):
                    self.say(f"{module.__name__}.{name} is gone: gave one of ours")
                    return value
                home, _, attribute = value.partition(":")
                self.say(f"{module.__name__}.{name} is gone: gave {home}.{attribute}".rstrip("."))
                found = import_module(home)
                return getattr(found, attribute) if attribute else found
            if answer_before is not None:
                return answer_before(name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        self.set(module, "__getattr__", answer)

    def after_import(self, fills: Mapping[str, Fill]) -> None:
        """Change modules: now those that are imported, the others as soon as they are."""
        for name, fill in fills.items():
            if name in sys.modules:
                fill(sys.modules[name])
        self._add_finder(0, _AfterImport(fills))

    def replace_package(self, name: str, make: Make) -> None:
        """Answer every import of `name`, and of what is below it, with what `make` returns."""

        def mine(full: str) -> bool:
            return full == name or full.startswith(f"{name}.")

        before = {full: sys.modules.pop(full) for full in list(sys.modules) if mine(full)}
        self.on_undo(lambda: sys.modules.update(before))
        self._add_finder(0, _Making(mine, make))

    def stand_in(self, name: str, fill: Fill, text: str) -> None:
        """Make the module `name`, should it be asked for and be found nowhere; then say `text`."""

        def make(module: ModuleType) -> ModuleType:
            fill(module)
            self.say(text)
            return module

        self._add_finder(len(sys.meta_path), _Making(lambda full: full == name, make))

    def _add_finder(self, place: int, finder: "_AfterImport | _Making") -> None:
        sys.meta_path.insert(place, finder)
        self.on_undo(finder.forget)

        def remove() -> None:
            if finder in sys.meta_path:  # others may have changed the list, too
                sys.meta_path.remove(finder)

        self.on_undo(remove)


class _Making(MetaPathFinder, Loader):
    """Finds modules that are in no file, and makes them."""

    def __init__(self, mine: Callable[[str], bool], make: Make):
        self._mine = mine
        self._make = make
        self._made: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if self._mine(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        # What a loader leaves in sys.modules is what `import` returns: here, it may be a module
        # that already has a name and a place of its own.
        name = module.__name__
        sys.modules[name] = self._make(module)
        self._made.append(name)

    def forget(self) -> None:
        for name in self._made:
            module = sys.modules.pop(name, None)
            parent, _, child = name.rpartition(".")
            # A module of another name is an alias: there, its parent's attribute is its own.
            if parent in sys.modules and getattr(module, "__name__", None) == name:
                vars(sys.modules[parent]).pop(child, None)


class _AfterImport(MetaPathFinder):
    """Finds no module itself: has those that others find changed once they are executed."""

    def __init__(self, fills: Mapping[str, Fill]):
        self._fills = dict(fills)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._fills:
            return None
        for finder in sys.meta_path:
            if not isinstance(finder, _AfterImport | _Making):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None and spec.loader is not None:
                    self._then_fill(spec.loader, self._fills[fullname])
                    return spec
        return None

    def _then_fill(self, loader: Any, fill: Fill) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            fill(module)

        # On this one loader, not around it: libraries read attributes off their own loader.
        loader.exec_module = exec_module

    def forget(self) -> None:
        self._fills.clear()
