"""`clipag run` runs notebooks without Jupyter, and converts arrays to numbers as numpy did."""

import json
import os
import sys
import textwrap

import numpy as np
import pytest

from clipag_plugins.integrations import shims
from clipag_plugins.integrations.shims import notebook


@pytest.fixture
def run_cells(tmp_path, monkeypatch, capsys):
    """Run a notebook's cells in this process; return its names, what it printed and reported."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # The runner changes these; monkeypatch puts them back.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    patches = shims.install()

    def call(*cells):
        path = tmp_path / "book.ipynb"
        cells = [{"cell_type": "code", "source": textwrap.dedent(cell)} for cell in cells]
        path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
        notebook.run_cells(path, notebook.read_cells(path), patches)
        return vars(sys.modules["__main__"]), *capsys.readouterr()

    yield call
    shims.uninstall()


def test_the_next_statement_follows_one_that_fails_without_its_package(run_cells):
    names, _, report = run_cells(
        """
        !pip install nothing
        import not_there
        before = 1
        for x in range(3):
            after = x
        from not_there import nothing
        """
    )
    assert (names["before"], names["after"]) == (1, 2)
    assert report.count("failed; continuing") == 2 and "cell 1, line 3 failed" in report


def test_a_cell_that_fetches_nothing_fails_as_a_whole(run_cells):
    with pytest.raises(ZeroDivisionError):
        run_cells("x = 1", "1 / 0\ny = 2")
    assert "y" not in vars(sys.modules["__main__"])


def test_commands_have_values_and_are_passed_over_whole(run_cells, tmp_path):
    names, out, report = run_cells(
        '''
        files = !ls -l
        folder = %pwd
        shell = %env HOME
        ?print
        print?
        folder.upper??
        !echo one \\
          two \\
          three
        !wget -q \\
            http://127.0.0.1:9/a.zip
        # a comment that ends with a backslash \\
        !ls
        text = """
        !not a command
        %neither is this
        """
        number = (7
            %4)
        %time timed = number + 1
        if files != ["x"]:
            !ls
        print("end")
        '''
    )
    assert names["files"] == [] and names["folder"] == str(tmp_path / "work")
    assert names["text"] == "\n!not a command\n%neither is this\n"
    assert (names["number"], names["timed"], out) == (3, 4, "end\n")
    assert isinstance(names["shell"], str)
    assert "!echo one; !wget -q; !ls" in report and "failed" not in report


def test_line_numbers_stay_right_behind_a_command(run_cells):
    with pytest.raises(ZeroDivisionError) as error:
        run_cells("!echo \\\n  two \\\n  three\n1 / 0")
    assert error.traceback[-1].lineno == 3


def test_folders_are_changed_and_made(run_cells, tmp_path):
    names, _, report = run_cells(
        """
        name = "four"
        %mkdir -p one/two
        !mkdir -p three {name}
        !mkdir $name/five
        %cd one
        inside = %pwd
        %cd -
        %cd nowhere/at/all
        !mkdir six && rm -r three
        """
    )
    made = {path.relative_to(tmp_path / "work").as_posix() for path in tmp_path.rglob("work/**/*")}
    assert made == {"one", "one/two", "three", "four", "four/five"}
    assert names["inside"] == str(tmp_path / "work" / "one")
    assert "%cd failed, staying in" in report and "!mkdir six && rm -r three" in report


def test_modules_beside_a_changed_folder_are_found(run_cells):
    names, *_ = run_cells(
        """
        %mkdir -p package_of_the_test
        from pathlib import Path
        _ = Path("package_of_the_test/neighbour_of_the_test.py").write_text("value = 5")
        %cd package_of_the_test
        """,
        "from neighbour_of_the_test import value",
    )
    assert names["value"] == 5


def test_environment_variables(run_cells, monkeypatch):
    monkeypatch.setenv("CLIPAG_TEST_A", "")
    monkeypatch.setenv("CLIPAG_TEST_B", "")
    names, *_ = run_cells(
        "%env CLIPAG_TEST_A=1\n%set_env CLIPAG_TEST_B two\na = %env CLIPAG_TEST_A"
    )
    assert names["a"] == "1"
    assert os.environ["CLIPAG_TEST_B"] == "two"


def test_colab_has_a_stand_in(run_cells):
    names, _, report = run_cells(
        """
        from google.colab import files, drive, output
        drive.mount("/content/drive")
        uploaded = files.upload()
        output.clear()
        files.download("picture.png")
        """
    )
    assert names["uploaded"] == {}
    assert "google.colab exists only in Colab" in report
    assert "google.colab.files.download does nothing" in report


@pytest.mark.parametrize(
    "question",
    [
        "try:\n    import google.colab\n    colab = True\nexcept ImportError:\n    colab = False",
        "import sys\ncolab = 'google.colab' in sys.modules",
        "colab = 'google.colab' in str(get_ipython())",
    ],
)
def test_a_notebook_that_asks_is_not_in_colab(question, run_cells):
    names, *_ = run_cells(question, "if colab:\n    from google.colab import files")
    assert names["colab"] is False and "files" not in names


def test_jupyters_functions_exist(run_cells):
    names, out, _ = run_cells(
        """
        from __future__ import annotations
        get_ipython().system("pip install nothing")
        get_ipython().run_line_magic("matplotlib", "inline")
        display("shown")
        """,
        "def f(x: NotDefined): pass",
    )
    assert out == "shown\n" and "__file__" not in names


def test_a_number_of_an_array_with_one_element(run_cells):
    names, _, report = run_cells(
        """
        import numpy as np
        numbers = [float(np.full((1, 1), 2.5)), int(np.array([3])), complex(np.array([1j]))]
        plain = float("1.5"), int(7.9), float(np.float64(2)), float(np.array(4.0))
        """
    )
    assert names["numbers"] == [2.5, 3, 1j]
    assert [type(number) for number in names["numbers"]] == [float, int, complex]
    assert names["plain"] == (1.5, 7, 2, 4)
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        assert report.count("refuses float(array)") == 1


def test_an_array_with_more_elements_is_no_number(run_cells):
    with pytest.raises(TypeError):
        run_cells("import numpy as np\nfloat(np.zeros(2))")


def test_modules_beside_a_script_make_numbers_of_arrays_too(tmp_path, monkeypatch):
    source = "import numpy as np\nvalue = float(np.ones((1, 1)))\n"
    (tmp_path / "neighbour_with_numbers.py").write_text(source)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    shims.install()
    try:
        import neighbour_with_numbers

        assert neighbour_with_numbers.value == 1
        assert not list(tmp_path.rglob("*.pyc"))  # rewritten code must not outlive the process
    finally:
        shims.uninstall()
        del sys.modules["neighbour_with_numbers"]
