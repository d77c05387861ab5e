"""The nodes in the real ComfyUI, where `COMFYUI_DIR` names one: see `benchmarks/comfyui.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMFYUI = os.environ.get("COMFYUI_DIR")


@pytest.mark.slow
@pytest.mark.skipif(COMFYUI is None, reason="COMFYUI_DIR names no ComfyUI")
def test_the_nodes_work_in_the_real_comfyui():
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-m", "benchmarks.comfyui", COMFYUI]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAIL" not in result.stdout and result.stdout.count("ok  ") > 20
