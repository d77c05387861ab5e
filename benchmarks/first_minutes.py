"""The first minutes of a user: each command of README and docs as it stands, from the wheel.

    python -m build
    OMP_NUM_THREADS=1 python -m benchmarks.first_minutes dist/*.whl commands
    python -m benchmarks.first_minutes dist/*.whl studio

The wheel goes into a new virtual environment, whose libraries are those of the one that runs this.
So nothing is fetched, and the time that pip takes is not measured. Commands that need more than the
package are left out: see `benchmarks.documents`. With one thread, CPU seconds depend little on what
else the machine does. The studio needs what `make test-studio` installs.
"""

import argparse
import json
import os
import re
import resource
import shlex
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipag_plugins.errors import ClipagError

from . import RESULTS, keep
from .documents import commands, write_files

FIRST = ("clipag", "clipag --help", "clipag models", "python -c 'import clipag_plugins'")
PARTS = ("commands", "studio")
LIMIT = 1200  # seconds of a command
PREVIEW = re.compile(r"Choosing|Step")


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel, and a folder to work in."""

    scripts: Path
    folder: Path

    def variables(self) -> dict[str, str]:
        """Return the environment of its commands, which do not see the clone."""
        paths = os.pathsep.join([str(self.scripts), os.environ["PATH"]])
        others = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        return {**others, "PATH": paths}


def installed(wheel: Path, folder: Path) -> Environment:
    """Install the wheel into a new virtual environment in `folder`."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    home = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    scripts = Path(sysconfig.get_path("scripts", "venv", home))
    site = Path(sysconfig.get_path("purelib", "venv", home))
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install"]
    environment = Environment(scripts, folder / "work")
    # pip would take the clone, or an editable installation among the libraries, for the wheel's.
    subprocess.run(
        [*pip, "--quiet", "--no-deps", "--no-index", str(wheel.absolute())], check=True,
        cwd=folder, env=environment.variables(),
    )  # fmt: skip
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    write_files(environment.folder)
    return environment


def timed(environment: Environment, line: str) -> dict[str, object]:
    """Run a command, and return its times, how it ended, and the last line that it printed."""
    before, start = _cpu_seconds(), time.monotonic()
    result = subprocess.run(
        ["bash", "-c", line], cwd=environment.folder, env=environment.variables(), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT,
    )  # fmt: skip
    seconds, cpu_seconds = time.monotonic() - start, _cpu_seconds() - before
    if result.returncode:
        print(result.stdout, file=sys.stderr)
    return {
        "command": line,
        "seconds": round(seconds, 1),
        "CPU seconds": round(cpu_seconds, 1),
        "exit code": result.returncode,
        "shows progress": "%|" in result.stdout,
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def studio(environment: Environment) -> dict[str, float]:
    """Return the seconds until the studio serves, and from a click to pictures."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    process = subprocess.Popen(
        ["clipag", "studio", "--port", str(port)], cwd=environment.folder, text=True,
        env=environment.variables(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        if "open" not in process.stdout.readline():
            raise ClipagError("The studio did not start: run clipag studio to see why.")
        times = {"until it serves": time.monotonic() - start}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
                args=["--no-sandbox"],
            )
            page = browser.new_page()
            page.set_default_timeout(LIMIT * 1000)
            page.goto(f"http://127.0.0.1:{port}/")
            page.locator("#generate-prompt textarea, #generate-prompt input").first.fill("a castle")
            page.wait_for_timeout(10_000)  # a user types a prompt; the studio loads its model
            start = time.monotonic()
            page.click("#run-generate")
            page.locator("#status", has_text=PREVIEW).wait_for()
            times["from the click to the first preview"] = time.monotonic() - start
            page.locator("#status", has_text=re.compile(r"Step [1-9]")).wait_for()
            times["from the click to the first step"] = time.monotonic() - start
            page.click("#stop")
            start = time.monotonic()
            page.locator("#status", has_text="best so far").wait_for()
            times["from the click on stop to the best picture"] = time.monotonic() - start
            browser.close()
    finally:
        process.terminate()
        process.wait()
    return {name: round(seconds, 2) for name, seconds in times.items()}


def main(wheel: Path, parts: Sequence[str]) -> None:
    """Measure the parts, and keep their times with those of the other part."""
    path = RESULTS / "first_minutes.json"
    figures = json.loads(path.read_text("utf-8")) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        environment = installed(wheel, Path(folder))
        if "commands" in parts:
            lines = dict.fromkeys([*FIRST, *(shlex.join(words) for _, words in commands())])
            figures["rows"] = []
            for line in lines:
                figures["rows"].append(timed(environment, line))
                print(figures["rows"][-1], file=sys.stderr, flush=True)
        if "studio" in parts:
            figures["studio"] = studio(environment)
    keep("first_minutes", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {' and '.join(PARTS)}")
    options = parser.parse_args()
    main(options.wheel, options.parts)
