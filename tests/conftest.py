import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

# One thread for each of pytest-xdist's workers and for the commands that they start: more would
# compete for the cores. torch reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image

import clipag_plugins as clip
from clipag_plugins.cli import main


@pytest.fixture(scope="session")
def model():
    return clip.load_model()


@pytest.fixture(scope="session")
def model64(model):
    """The model in float64: what is equal in theory is equal on every processor, to 10 digits."""
    return copy.deepcopy(model).double()


@pytest.fixture(scope="session")
def vanilla():
    return clip.load_model("clip-mini")


@pytest.fixture(scope="session")
def held_out():
    """Captions, and pictures of them (96, 3, 48, 48) that no model was trained on.

    They are Fluent Emoji (Microsoft, MIT) and Noto Emoji (Google, Apache-2.0); the sheet carries
    the captions.
    """
    with Image.open(Path(__file__).parent / "held_out.png") as file:
        captions = file.text["captions"].split("; ")
        pixels = torch.from_numpy(np.array(file)).permute(2, 0, 1) / 255
    return captions, pixels.unfold(1, 48, 48).unfold(2, 48, 48).permute(1, 2, 0, 3, 4).flatten(0, 1)


@pytest.fixture(scope="session")
def judge():
    """The judge of benchmarks/: its first text takes long, since MiniLM reads all captions."""
    from benchmarks.judge import Judge

    return Judge.load()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command line in this process, in an empty folder.

    `run_process` does the same in a process of its own, which takes 2 seconds more to import torch.
    `generate` draws with the small model, unless another is named: its own takes ten times longer.
    """

    def call(*arguments, cwd=tmp_path):
        if arguments[:1] == ("generate",) and "--model" not in arguments:
            arguments = (*arguments, "--model", "clipag-mini")
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as stop:  # argparse's, for --help and for options that it refuses
                code = stop.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call


@pytest.fixture
def run_process(tmp_path):
    """Run the command line as a user does, in a process of its own and in an empty folder."""

    def call(*arguments, cwd=tmp_path):
        command = [sys.executable, "-m", "clipag_plugins", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture
def interrupt(tmp_path):
    """Run the command line until its bar shows a word, press Ctrl-C, and return what it says."""

    def call(word, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "clipag_plugins", *arguments],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            # A runner in the background may have left Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            shown = ""
            while word not in shown and process.poll() is None:
                shown += process.stderr.read(1)
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, rest

    return call


@pytest.fixture
def locked(tmp_path):
    """A folder that nobody may write to."""
    if os.geteuid():
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        return folder
    folder = Path("/sys")  # root may write anywhere but where the kernel keeps its own
    if not folder.is_dir():
        pytest.skip("root may write anywhere")
    return folder


@pytest.fixture(autouse=True)
def without_shims():
    """Take back what a test installed: it would change the tests after it.

    Shims replace `clip.load`, and a script that is run in this process becomes its main module,
    which processes started by *spawn* read again.
    """
    main, environment = sys.modules["__main__"], dict(os.environ)
    attributes, path, arguments = dict(vars(main)), list(sys.path), list(sys.argv)
    yield
    redirect = sys.modules.get("clipag_plugins.integrations.shims.redirect")
    if redirect is not None:
        redirect.uninstall()
    sys.modules["__main__"] = main
    vars(main).clear()
    vars(main).update(attributes)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:], sys.argv[:] = path, arguments


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
