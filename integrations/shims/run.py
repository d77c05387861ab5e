"""Run a script or notebook as `python SCRIPT` would, with the shims installed."""

import ast
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType

from clipag_plugins.errors import INTERRUPTED, ClipagError
from clipag_plugins.integrations import shims
from clipag_plugins.integrations.shims import notebook, scalars

NO_GPU = re.compile(r"not compiled with CUDA|No CUDA GPUs|no NVIDIA driver|cuda\.is_available\(\)")


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
        script: a Python file, or a Jupyter notebook, whose code cells run in order (`notebook`).
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
    cells = notebook.read_cells(script) if script.suffix == ".ipynb" else None
    patches = shims.install(model, device, pydiffvg)
    sys.argv = [str(script), *arguments]
    # Like python, so that the script can import the modules next to it.
    sys.path[0] = str(script.resolve().parent)
    try:
        if cells is None:
            _run_file(script)
        else:
            notebook.run_cells(script, cells, patches)
    except (Exception, KeyboardInterrupt) as error:
        error = error.with_traceback(_cut_above_script(error.__traceback__, str(script)))
        if sys.excepthook is sys.__excepthook__:
            # Unlike python's own hook, this prints the source lines of notebook cells.
            traceback.print_exception(error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        if device is None and NO_GPU.search(str(error)):
            notebook.report(f"{no_gpu_hint}.")
        if scalars.REFUSAL.search(str(error)):
            notebook.report(scalars.ADVICE)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _run_file(script: Path) -> None:
    main = ModuleType("__main__")
    vars(main).update(__file__=str(script), __cached__=None)
    sys.modules["__main__"] = main
    tree = ast.parse(script.read_bytes(), str(script))
    exec(scalars.compile_statements(tree, str(script)), vars(main))


def _cut_above_script(trace: TracebackType | None, script: str) -> TracebackType | None:
    """Remove this package's frames, which are above the script's, from a traceback."""
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_code.co_filename.startswith(script):
            break
        trace = trace.tb_next if trace is not None else None
    return trace
