"""Run a script or notebook as `python SCRIPT` would, with the shims installed."""

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
OTHER_LANGUAGE = re.compile(
    r"\s*%%(bash|sh|html|javascript|js|latex|writefile|script|perl|ruby|svg)\b"
)
INSTALLATION = re.compile(r"^\s*[!%]\s*(pip|git|apt|apt-get|conda|npm)\b", re.MULTILINE)


def run_script(
    script: Path,
    arguments: Sequence[str],
    model: str | None = None,
    device: str | None = None,
    pydiffvg: str | None = None,
    no_gpu_hint: str = "run it with device cpu",
) -> int:
    """Run `script` as `__main__` and return its exit code.

    Args:
        script: a Python file, or a Jupyter notebook, whose code cells run in order. Lines that
            start with `!` or `%` are skipped.
        arguments: the script's `sys.argv[1:]`.
        model: the weights that every `clip.load` returns; None is clipag-mini.
        device: "cpu" runs on the CPU what asks for CUDA.
        pydiffvg: "ours" replaces an installed pydiffvg by ours.
        no_gpu_hint: what to print when the script fails because there is no GPU.

    Raises:
        ClipagError: there is no such script, or an .ipynb file is not a notebook.
        SystemExit: the script exited by itself.
    """
    if not script.is_file():
        raise ClipagError(f"There is no script {script}: name a .py file or a .ipynb notebook.")
    cells = _read_cells(script) if script.suffix == ".ipynb" else None
    shims.install(model, device, pydiffvg)
    sys.argv = [str(script), *arguments]
    # Like python, so that the script can import the modules next to it.
    sys.path[0] = str(script.resolve().parent)
    try:
        if cells is None:
            runpy.run_path(str(script), run_name="__main__")
        else:
            _run_cells(script, cells)
    except (Exception, KeyboardInterrupt) as error:
        error = error.with_traceback(_cut_above_script(error.__traceback__, str(script)))
        if sys.excepthook is sys.__excepthook__:
            # Unlike python's own hook, this prints the source lines of notebook cells.
            traceback.print_exception(error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        if device is None and NO_GPU.search(str(error)):
            _report(f"{no_gpu_hint}.")
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _cut_above_script(trace: TracebackType | None, script: str) -> TracebackType | None:
    """Remove this package's frames, which are above the script's, from a traceback."""
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
        source = _to_python(cell, name)
        # A cell is not a file; tracebacks find its lines in this cache.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        try:
            exec(compile(source, name, "exec"), vars(main))
        except Exception as error:
            if not INSTALLATION.search(cell):
                raise
            # The cell installs packages on lines that were skipped. They may be installed already.
            _report(f"{name} installs software and failed; continuing: {error!r}")


def _to_python(cell: str, name: str) -> str:
    """Return a cell's source as Python, without IPython's extensions."""
    if OTHER_LANGUAGE.match(cell):
        _report(f"{name} is not Python: skipped")
        return ""
    try:
        ast.parse(cell)
    except SyntaxError:
        lines = [line[0].strip() for line in MAGIC.finditer(cell)]
        if lines:
            _report(f"{name}: skipped IPython's commands: {'; '.join(lines)}")
        return MAGIC.sub(r"\1pass", cell)
    return cell


def _report(text: str) -> None:
    print(f"clipag: {text}", file=sys.stderr)
