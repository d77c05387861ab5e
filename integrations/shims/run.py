"""Run a script or notebook as `python SCRIPT` would, after the shims are in place."""

import ast
import json
import linecache
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType

from clipag_plugins.errors import INTERRUPTED, ClipagError
from clipag_plugins.integrations import shims

NO_GPU = re.compile(r"not compiled with CUDA|No CUDA GPUs|no NVIDIA driver|cuda\.is_available\(\)")
MAGIC = re.compile(r"^(\s*)(![^=]|%{1,2}[a-zA-Z]).*$", re.MULTILINE)
FOREIGN = re.compile(r"\s*%%(bash|sh|html|javascript|js|latex|writefile|script|perl|ruby|svg)\b")
SETUP = re.compile(r"^\s*[!%]\s*(pip|git|apt|apt-get|conda|npm)\b", re.MULTILINE)


def run_script(
    script: Path,
    arguments: Sequence[str],
    model: str | None = None,
    device: str | None = None,
    pydiffvg: str | None = None,
) -> int:
    """Run `script` as `__main__` and return its exit code.

    Args:
        script: a Python file, or a Jupyter notebook whose code cells are run in order; lines
            that start with `!` or `%` are passed over.
        arguments: what the script finds in `sys.argv[1:]`.
        model: which weights every `clip.load` gets; None is clipag-mini.
        device: "cpu" runs on the CPU what asks for cuda.
        pydiffvg: "ours" gives our pydiffvg even where there is another.

    Raises:
        ClipagError: there is no such script, or it is no notebook although its name says so.
        SystemExit: the script exited by itself.
    """
    if not script.is_file():
        raise ClipagError(f"There is no script {script}: name a .py file or a .ipynb notebook.")
    cells = _read_cells(script) if script.suffix == ".ipynb" else None
    shims.install(model, device, pydiffvg)
    sys.argv = [str(script), *arguments]
    # As python does: the script's own folder, where it looks for the modules beside it.
    sys.path[0] = str(script.resolve().parent)
    try:
        if cells is None:
            runpy.run_path(str(script), run_name="__main__")
        else:
            _run_cells(script, cells)
    except (Exception, KeyboardInterrupt) as error:
        error = error.with_traceback(_from_script(error.__traceback__, str(script)))
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(error)  # knows the lines of cells, which python does not
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        if device is None and NO_GPU.search(str(error)):
            print("clipag: run it with --device cpu, before the script's name.", file=sys.stderr)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _from_script(trace: TracebackType | None, script: str) -> TracebackType | None:
    """Cut from a traceback the frames above the script, which are ours."""
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_code.co_filename.startswith(script):
            break
        trace = trace.tb_next if trace is not None else None
    return trace


def _read_cells(path: Path) -> list[str]:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise ClipagError(
            f"{path} is not a Jupyter notebook of version 4: open it in Jupyter and save it again."
        ) from error


def _run_cells(path: Path, cells: Sequence[str]) -> None:
    main = ModuleType("__main__")
    main.__file__ = str(path)
    vars(main)["display"] = print
    sys.modules["__main__"] = main
    for number, cell in enumerate(cells, start=1):
        name = f"{path}, cell {number}"
        source = _plain(cell, name)
        # Where tracebacks find the lines of a file that is none.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        try:
            exec(compile(source, name, "exec"), vars(main))
        except Exception as error:
            if not SETUP.search(cell):
                raise
            # It installs things, by lines that were passed over: what it lacks may well be here.
            _note(f"{name} sets up a machine and failed, going on: {error!r}")


def _plain(cell: str, name: str) -> str:
    """Return a cell's Python: what IPython adds to the language is passed over."""
    if FOREIGN.match(cell):
        _note(f"{name} is not Python: passed over")
        return ""
    try:
        ast.parse(cell)
    except SyntaxError:
        lines = [line[0].strip() for line in MAGIC.finditer(cell)]
        if lines:
            _note(f"{name}: passed over what is IPython's: {'; '.join(lines)}")
        return MAGIC.sub(r"\1pass", cell)
    return cell


def _note(text: str) -> None:
    print(f"clipag: {text}", file=sys.stderr)
