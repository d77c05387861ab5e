"""The benchmark of GPUs, with the CPU in the place of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.gpu.__main__ import PARTS

ROOT = Path(__file__).parent.parent


def measure(out, *options):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", out]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_every_part_runs_and_a_second_run_goes_on(tmp_path):
    out = tmp_path / "gpu.json"
    assert measure(out, "--parts", "limit,renderer").returncode == 0
    first = json.loads(out.read_text())
    assert [*first["parts"]] == ["limit", "renderer"]
    done = measure(out)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert [*results["parts"]] == [*PARTS] and results["skipped"] == []
    assert '"error"' not in out.read_text()
    assert results["parts"]["limit"] == first["parts"]["limit"]
    for cells in (report.gpu_checks, report.gpu_speed, report.gpu_others):
        header, *lines = cells(results)
        assert lines and all(len(line) == len(header) for line in lines)


@pytest.mark.slow
def test_time_that_is_up_and_wheels_that_are_missing_are_named(tmp_path):
    out = tmp_path / "gpu.json"
    done = measure(out, "--seconds", "0", "--wheels", str(tmp_path), "--parts", "limit,steps")
    assert done.returncode == 0
    results = json.loads(out.read_text())
    assert results["skipped"] == ["limit", "steps"] and results["parts"] == {}
    assert "no wheel" in results["wheels that failed"][str(tmp_path)]
    assert "there is no part" in measure(out, "--parts", "limits").stderr
