"""Stand-ins for `google.colab`, whose functions do nothing outside Colab.

Many notebooks find out whether they run in Colab by `try: import google.colab`. That must still
fail, so the stand-ins exist only once a notebook imports a part of it outside a `try`.
"""

import ast
import os
from functools import partial
from types import ModuleType
from typing import Any

from clipag_plugins.integrations.shims.patching import Patches

MODULES = ("auth", "data_table", "drive", "files", "output", "patches", "runtime", "userdata")
# What the functions return that notebooks use; the others return None.
RESULTS: dict[tuple[str, str], Any] = {
    ("files", "upload"): lambda *_: {},
    ("userdata", "get"): os.environ.get,
}


def is_imported_by(statement: ast.stmt) -> bool:
    """Return whether a statement imports a part of `google.colab`, outside any `try`."""
    if isinstance(statement, ast.Try):
        return False
    if isinstance(statement, ast.ImportFrom):
        return (statement.module or "").split(".")[:2] == ["google", "colab"]
    if isinstance(statement, ast.Import):
        return any(alias.name.startswith("google.colab.") for alias in statement.names)
    return any(
        is_imported_by(child)
        for child in ast.iter_child_nodes(statement)
        if isinstance(child, ast.stmt)
    )


def provide(patches: Patches) -> None:
    """Make `google.colab` importable, if it is not installed."""
    patches.provide_module("google", _make_package, None)
    patches.provide_module(
        "google.colab", _make_package, "google.colab exists only in Colab: its functions do nothing"
    )
    for name in MODULES:
        patches.provide_module(f"google.colab.{name}", partial(_fill, patches, name), None)


def _make_package(module: ModuleType) -> None:
    module.__path__ = []


def _fill(patches: Patches, module_name: str, module: ModuleType) -> None:
    def get_function(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def stand_in(*arguments: Any, **_: Any) -> Any:
            patches.report(f"google.colab.{module_name}.{name} does nothing outside Colab")
            result = RESULTS.get((module_name, name))
            return result(*arguments) if result is not None else None

        return stand_in

    vars(module)["__getattr__"] = get_function
