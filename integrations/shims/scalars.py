"""Lets a script call `float(array)` for an array of one element, which numpy 2.4 refuses.

The type of arrays cannot be changed from Python, so these calls are rewritten when a script is
compiled: its own file, the cells of a notebook, and the modules below the script's folder.
Installed libraries stay as they are, because they must work with their numpy anyway.
"""

import ast
import builtins
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from clipag_plugins.integrations.shims.patching import Patches

CONVERT = "_clipag_convert"
NUMBERS = {"float": float, "int": int, "complex": complex}
INSTALLED = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]))
REFUSAL = re.compile("only 0-dimensional arrays can be converted to Python scalars")
ADVICE = "numpy 2.4 no longer makes a number of an array with dimensions: pip install 'numpy<2.4'."


def patch(patches: Patches) -> None:
    """Rewrite the modules below the script's folder as they are imported, if numpy is so new."""
    if not _numpy_refuses():
        return

    def convert(function: Any, value: Any) -> Any:
        if getattr(value, "ndim", 0) and function in NUMBERS.values():
            import numpy as np

            if isinstance(value, np.ndarray) and value.size == 1:
                patches.report("numpy 2.4 refuses float(array): using the array's only element")
                value = value.item()
        return function(value)

    patches.set(builtins, CONVERT, convert)
    finder = _ScriptModules()
    sys.meta_path.insert(0, finder)
    patches.on_undo(lambda: sys.meta_path.remove(finder) if finder in sys.meta_path else None)


def compile_statements(tree: ast.Module, name: str, flags: int = 0) -> CodeType:
    """Compile a module of a script, with calls of `float`, `int` and `complex` rewritten."""
    if _numpy_refuses():
        tree = ast.fix_missing_locations(_Rewriter().visit(tree))
    code: CodeType = compile(tree, name, "exec", flags=flags, dont_inherit=True)
    return code


@cache
def _numpy_refuses() -> bool:
    major, minor = metadata.version("numpy").split(".")[:2]
    return (int(major), int(minor)) >= (2, 4)


class _Rewriter(ast.NodeTransformer):
    """Replaces `float(x)` by `_clipag_convert(float, x)`."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        is_number = isinstance(node.func, ast.Name) and node.func.id in NUMBERS
        if not is_number or len(node.args) != 1 or node.keywords:
            return node
        if isinstance(node.args[0], ast.Starred | ast.Constant):
            return node
        function = ast.Name(CONVERT, ast.Load())
        return ast.copy_location(ast.Call(function, [node.func, *node.args], []), node)


class _ScriptModules(MetaPathFinder):
    """Lets the other finders find a module, and rewrites those below the script's folder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        finders = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else []
        for finder in finders:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if isinstance(spec.loader, SourceFileLoader) and _is_scripts_own(spec.origin):
                    _rewrite(spec.loader)
                return spec
        return None


def _is_scripts_own(file: str | None) -> bool:
    if file is None or file.startswith(INSTALLED) or "site-packages" in file:
        return False
    return Path(file).resolve().is_relative_to(Path(sys.path[0] or ".").resolve())


def _rewrite(loader: Any) -> None:
    def get_code(fullname: str) -> CodeType:
        # Not SourceFileLoader's: it would write the rewritten code to a .pyc, which would outlive
        # this process.
        file = loader.get_filename(fullname)
        return compile_statements(ast.parse(loader.get_data(file), file), file)

    loader.get_code = get_code
