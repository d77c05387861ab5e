"""Run a Jupyter notebook's code cells as one script, without Jupyter and without a shell.

IPython's extensions of Python become calls of `Shell`, which changes and makes folders, and reads
and sets environment variables. Other commands are passed over and reported. A cell whose commands
install or fetch something often works without them, because it is there already. So if a statement
of such a cell fails, the run goes on with the next statement.
"""

import __future__

import ast
import json
import linecache
import os
import re
import shlex
import sys
import tokenize
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.shims import colab, scalars
from clipag_plugins.integrations.shims.patching import Patches

OTHER_LANGUAGE = re.compile(
    r"\s*%%(bash|sh|shell|html|javascript|js|latex|markdown|writefile|script|perl|ruby|svg)\b"
)
FETCHING = re.compile(
    r"^\s*[!%]\s*(sudo\s+)?(python\d*\s+-m\s+)?(pip\d?|git|apt|apt-get|conda|mamba|npm|wget|curl|"
    r"gdown|gsutil|aria2c|unzip|tar|cp|mv|ln)\b",
    re.MULTILINE,
)
COMMAND = re.compile(r"(?P<indent>\s*)(?P<kind>!!?(?!=)|%%?(?=[a-zA-Z]))(?P<text>.*)", re.DOTALL)
ASSIGNMENT = re.compile(
    r"(?P<indent>\s*)(?P<target>[A-Za-z_][\w.,\[\]'\" ]*?)\s*=\s*"
    r"(?P<kind>!(?!=)|%(?=[a-zA-Z]))(?P<text>.*)",
    re.DOTALL,
)
HELP = re.compile(r"(?P<indent>\s*)(\?{1,2}\s*[%\w.*]+|[%\w.*]+\?{1,2})\s*;?\s*")
TIMING = re.compile(r"(time|prun|capture)\b(?:\s+-\w+)*")
# Shells give these characters a meaning that we do not imitate.
SHELL_SYNTAX = re.compile(r"[;&|<>`*?()]|\$\(|\{[^}]*,")


def read_cells(path: Path) -> list[str]:
    """Return the source of a notebook's code cells.

    Raises:
        ClipagError: the file is not a notebook.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise ClipagError(
            f"{path} is not a Jupyter notebook of version 4: open it in Jupyter and save it again."
        ) from error


def run_cells(path: Path, cells: Sequence[str], patches: Patches) -> None:
    """Run the cells, in order, in one module `__main__`."""
    main = ModuleType("__main__")
    shell = Shell(vars(main))
    # As in Jupyter, there is no __file__: the children of multiprocessing would run it as Python.
    vars(main).update(display=print, get_ipython=lambda: shell)
    sys.modules["__main__"] = main
    sys.path.insert(1, "")  # the current folder, which %cd changes
    runner = _Runner(main, patches)
    for number, cell in enumerate(cells, start=1):
        runner.run(cell, f"{path}, cell {number}")


class _Runner:
    """Runs cells statement by statement."""

    def __init__(self, main: ModuleType, patches: Patches) -> None:
        self._main = main
        self._patches = patches
        self._flags = 0  # of `from __future__ import …`
        self._has_colab = False

    def run(self, cell: str, name: str) -> None:
        source = _to_python(cell, name)
        # A cell is not a file; tracebacks find its lines in this cache.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        goes_on = FETCHING.search(cell) is not None
        try:
            statements = ast.parse(source, name).body
        except SyntaxError as error:
            if not goes_on:
                raise
            report(f"{name} is not Python; continuing with the next cell: {error!r}")
            return
        for statement in statements:
            try:
                self._run_statement(statement, name)
            except Exception as error:
                if not goes_on:
                    raise
                report(
                    f"{name}, line {statement.lineno} failed; continuing, because the cell's "
                    f"commands were skipped: {error!r}"
                )

    def _run_statement(self, statement: ast.stmt, name: str) -> None:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            for alias in statement.names:
                self._flags |= getattr(__future__, alias.name).compiler_flag
        if not self._has_colab and colab.is_imported_by(statement):
            colab.provide(self._patches)
            self._has_colab = True
        module = ast.Module([statement], type_ignores=[])
        exec(scalars.compile_statements(module, name, self._flags), vars(self._main))


class Shell:
    """What `get_ipython()` returns in a notebook's cells."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.user_ns = namespace
        self._previous = Path.cwd()

    def system(self, command: str) -> None:
        """Make folders if that is what the command does; otherwise do nothing."""
        words = _simple_words(self._expand(command))
        if words[:1] == ["mkdir"]:
            self._mkdir(words[1:])

    def getoutput(self, command: str) -> list[str]:
        """Return the lines that a command would print: none, because it is not run."""
        self.system(command)
        return []

    def run_line_magic(self, name: str, line: str = "") -> str | None:
        """Do `cd`, `mkdir`, `pwd`, `env` and `set_env`; pass over every other magic."""
        words = _simple_words(self._expand(line))
        if name == "cd":
            return self._cd([word for word in words if word != "-q"])
        if name == "mkdir":
            self._mkdir(words)
        if name == "pwd":
            return str(Path.cwd())
        if name in ("env", "set_env") and words:
            variable, _, value = " ".join(words).partition("=" if "=" in words[0] else " ")
            if value:
                os.environ[variable] = value
            return os.environ.get(variable, "")
        return ""

    magic = run_line_magic

    def run_cell_magic(self, name: str, line: str, cell: str) -> None:
        """Pass over a cell's magic."""

    def _expand(self, text: str) -> str:
        """Put variables into a command, as IPython does for `{name}` and `$name`."""

        def value(match: re.Match[str]) -> str:
            return str(self.user_ns.get(match[1] or match[2], match[0]))

        return os.path.expandvars(re.sub(r"\{(\w+)\}|\$(\w+)", value, text))

    def _cd(self, words: list[str]) -> str:
        before = Path.cwd()
        folder = Path(words[0] if words else "~").expanduser()
        try:
            os.chdir(self._previous if words[:1] == ["-"] else folder)
        except OSError as error:
            report(f"%cd failed, staying in {before}: {error}")
        else:
            self._previous = before
        return str(Path.cwd())

    def _mkdir(self, words: list[str]) -> None:
        options = {word for word in words if word.startswith("-")}
        parents = any("p" in option for option in options)
        for word in words:
            if word not in options:
                try:
                    Path(word).expanduser().mkdir(parents=parents, exist_ok=parents)
                except OSError as error:
                    report(f"mkdir failed: {error}")


def _simple_words(text: str) -> list[str]:
    """Return the words of a command, or nothing if only a shell can understand it."""
    try:
        return [] if SHELL_SYNTAX.search(text) else shlex.split(text)
    except ValueError:  # a quotation mark without its pair
        return []


def _is_done(kind: str, text: str) -> bool:
    """Return whether `Shell` does a command rather than pass it over."""
    name = text.split(maxsplit=1)[0] if text.strip() else ""
    if kind.startswith("!"):
        return name == "mkdir" and bool(_simple_words(text))
    return name in ("cd", "mkdir", "pwd", "env", "set_env")


def _to_python(cell: str, name: str) -> str:
    """Return a cell's source as Python, with IPython's commands as calls, line for line."""
    if OTHER_LANGUAGE.match(cell):
        report(f"{name} is not Python: skipped")
        return ""
    skipped: list[str] = []
    lines: list[str] = []
    for statement in _logical_lines(cell):
        lines.append(_translate(statement, skipped))
        # The other lines of a command become empty, so that line numbers stay right.
        lines.append("\n" * (statement.count("\n") - lines[-1].count("\n")))
    if skipped:
        report(f"{name}: skipped IPython's commands: {'; '.join(skipped)}")
    return "".join(lines)


def _logical_lines(cell: str) -> Iterator[str]:
    """Yield a cell's logical lines: each with those that continue it."""
    lines = iter(cell.splitlines(keepends=True))
    for line in lines:
        logical = line
        while _is_open(logical):
            following = next(lines, None)
            if following is None:
                break
            logical += following
        yield logical


def _is_open(text: str) -> bool:
    """Return whether the next line belongs to this one."""
    if text.lstrip().startswith("#"):
        return False
    if text.rstrip().endswith("\\"):
        return True
    if COMMAND.fullmatch(text) or ASSIGNMENT.fullmatch(text):
        return False
    try:
        list(tokenize.generate_tokens(StringIO(text).readline))
    except tokenize.TokenError as error:
        return "multi-line" in str(error) or "triple-quoted" in str(error)
    except SyntaxError:  # IndentationError among them: it is not about what follows
        return False
    return False


def _translate(statement: str, skipped: list[str]) -> str:
    """Translate a logical line, and add to `skipped` the command that it contains."""
    end = "\n" if statement.endswith("\n") else ""
    if match := HELP.fullmatch(statement):
        return f"{match['indent']}pass{end}"
    match = COMMAND.fullmatch(statement) or ASSIGNMENT.fullmatch(statement)
    if match is None:
        return statement
    kind = match["kind"]
    text = re.sub(r"\\\n\s*", " ", match["text"]).strip()
    target = match.groupdict().get("target")
    if kind.startswith("%") and (timing := TIMING.match(text)):
        # What is timed is Python itself.
        rest = text[timing.end() :].strip() if kind == "%" else ""
        return f"{match['indent']}{rest or 'pass'}{end}"
    if not _is_done(kind, text):
        skipped.append(statement.strip().splitlines()[0].rstrip(" \\"))
    if kind.startswith("!"):
        method = "getoutput" if target else "system"
        call = f"get_ipython().{method}({text!r})"
    else:
        name, _, line = text.partition(" ")
        call = f"get_ipython().run_line_magic({name!r}, {line.strip()!r})"
    return f"{match['indent']}{f'{target} = ' if target else ''}{call}{end}"


def report(text: str) -> None:
    """Print one line to stderr."""
    print(f"clipag: {text}", file=sys.stderr)
