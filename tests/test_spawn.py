"""Under `clipag run`, every Python that a script starts has the shims."""

import os
import sys
import textwrap

import pytest

from clipag_plugins.integrations import shims

WORKERS = """
    import multiprocessing
    import sys

    def worker(queue):
        try:
            import clip
            import numpy as np
            import torch
            from PIL.Image import ANTIALIAS
            device = torch.zeros(2).cuda().device
            queue.put(f"{clip.__name__} {clip.load('RN50', device='cuda')[0].name} {device}")
        except BaseException as error:
            queue.put(repr(error))

    if __name__ == "__main__":
        for method in sys.argv[1:]:
            context = multiprocessing.get_context(method)
            queue = context.Queue()
            process = context.Process(target=worker, args=(queue,))
            process.start()
            print(method, queue.get(timeout=100))
            process.join()
"""


@pytest.fixture
def run_script(tmp_path, run_process):
    def call(code, *arguments, options=()):
        (tmp_path / "script.py").write_text(textwrap.dedent(code), encoding="utf-8")
        return run_process("run", *options, "script.py", *arguments)

    return call


@pytest.mark.slow
def test_workers_import_our_clip(run_script):
    methods = ("spawn",) if sys.platform == "win32" else ("spawn", "forkserver", "fork")
    result = run_script(WORKERS, *methods, options=("--device", "cpu", "--model", "clip-mini"))
    expected = [f"{method} clipag_plugins.clip clip-mini cpu" for method in methods]
    assert result.stdout.splitlines() == expected, result.stderr
    # Only the forked worker, which shares its parent's reports, says what it uses.
    assert result.stderr.count("import clip gives") <= 1


@pytest.mark.slow
def test_scripts_that_a_script_starts_import_our_clip(run_script, tmp_path):
    (tmp_path / "other.py").write_text("import clip; print(clip.__name__)")
    result = run_script(
        """
        import os, subprocess, sys
        os.mkdir("elsewhere")
        subprocess.run([sys.executable, "../other.py"], cwd="elsewhere", check=True)
        subprocess.run([sys.executable, "-c", "import sys; print('torch' in sys.modules)"])
        """
    )
    assert result.stdout.splitlines() == ["clipag_plugins.clip", "False"], result.stderr
    assert "import clip gives clipag_plugins.clip" in result.stderr


@pytest.mark.slow
def test_a_hidden_sitecustomize_still_runs(run_script, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys; sys.was_customized = True")
    others = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), others]))
    result = run_script(
        """
        import subprocess, sys
        code = "import sys, sitecustomize; print(sys.was_customized, sitecustomize.__file__)"
        subprocess.run([sys.executable, "-c", code])
        """
    )
    assert result.stdout == f"True {tmp_path / 'site' / 'sitecustomize.py'}\n", result.stderr


def test_uninstall_restores_the_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    before = dict(os.environ)
    shims.install()
    assert os.environ["PYTHONPATH"].endswith("startup" + os.pathsep + "somewhere")
    shims.install()  # a second call does not add the folder again
    assert os.environ["PYTHONPATH"].count("startup") == 1
    shims.uninstall()
    assert dict(os.environ) == before
