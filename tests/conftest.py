import subprocess
import sys

import pytest
import torch

import clipag_plugins as clip


@pytest.fixture(scope="session")
def model():
    return clip.load_clipag()


@pytest.fixture(scope="session")
def vanilla():
    return clip.load_clipag("clip-mini")


@pytest.fixture
def run(tmp_path):
    """Run the command line as a user does, in an empty folder."""

    def call(*arguments, cwd=tmp_path):
        command = [sys.executable, "-m", "clipag_plugins", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
