"""Every code block of README and docs/ runs here, or is listed here with the reason why not.

Commands run as they stand, but with fewer steps, on pictures with the names that the documents use.
"""

import argparse
import re
import subprocess

import pytest
import torch

import clipag_plugins as clip
from benchmarks import ROOT
from benchmarks.documents import LINES_ELSEWHERE, TEXTS, blocks, commands, shell_lines, write_files
from clipag_plugins import canvas
from clipag_plugins.commands import options as command_options

# Options that make a command quick. The last value of an option counts.
ASCENT = "--steps 1 --size 32 --tries 1 --views 1 --init noise"
QUICK = {
    "generate": "--steps 1 --size 32 --tries 1",
    "draw": "--steps 1 --size 32 --strokes 4",
    "vqgan": "--steps 1 --size 32 --views 2",
    "style": "--steps 1 --size 32 --patches 2",
    "explain": "",
    "pag": "--samples 1",
    "attack": "--steps 1",
    "eval": "--out evaluation",
    "invert": ASCENT,
    "interpolate": ASCENT,
    "edit": ASCENT,
    "pca": f"{ASCENT} --components 1 2",
    "typographic": ASCENT,
}

# Blocks of Python that do not run here, by words of theirs.
BLOCKS_ELSEWHERE = {
    "ClipagGuidance": "needs a pipeline of diffusers; test_diffusion.py",
    "laion/CLIP-ViT-B-16": "an entry of a table; test_documents.py",
}

# What makes Python quick.
FEWER = {
    'generate("a red apple")': 'generate("a red apple", steps=1, size=32, tries=1)',
    "steps=100": "steps=1",
    "steps=4": "steps=1, tries=1",
}

PYTHON = [(name, code) for name in TEXTS for code in blocks(TEXTS[name], "python")]


def test_the_lists_name_only_what_the_documents_have():
    lines = [" ".join(words) for text in TEXTS.values() for words in shell_lines(text)]
    for words in LINES_ELSEWHERE:
        assert any(line.startswith(words) for line in lines), words
    for words in BLOCKS_ELSEWHERE:
        assert any(words in code for _, code in PYTHON), words
    assert {words[1] for _, words in commands()} == set(QUICK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks") / "work"
    write_files(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), list(commands()))
def test_a_command_runs(run, folder, name, words):
    result = run(*words[1:], *QUICK[words[1]].split(), cwd=folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("name", sorted({name for name, _ in PYTHON} - {"docs/design.md"}))
def test_the_python_of_a_document_runs(name, model, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {"canvas": canvas.PixelCanvas(torch.full((1, 3, 64, 64), 0.5))}
    for code in blocks(TEXTS[name], "python"):
        if not any(words in code for words in BLOCKS_ELSEWHERE):
            for slow, quick in FEWER.items():
                code = code.replace(slow, quick)
            exec(code, names)
    if name == "README.md":
        assert names["embeddings"].shape[0] == 2
        assert names["ascent"].images.shape == (1, 3, 64, 64)


def design(words):
    """Return the block of design.md with these words."""
    (code,) = (code for code in blocks(TEXTS["docs/design.md"], "python") if words in code)
    return code


def test_the_canvas_of_the_guide_works(model):
    names = {}
    exec(design("class Mosaic"), names)
    test = design("test_a_mosaic")
    exec(test.replace("from clipag_plugins.integrations.mosaic import Mosaic\n", ""), names)
    names["test_a_mosaic_comes_nearer_to_its_text"](model)


def test_the_command_of_the_guide_works(capsys):
    names = {"__package__": "clipag_plugins.commands", "EXAMPLES": "", **vars(command_options)}
    exec(design("def add(commands"), names)
    parser = argparse.ArgumentParser()
    names["add"](parser.add_subparsers())

    def run(*arguments):
        options = parser.parse_args([str(argument) for argument in arguments])
        code = options.run(options)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    names["__file__"] = str(ROOT / "tests" / "test_similarity.py")
    exec(design("test_a_picture_is_compared"), names)
    names["test_a_picture_is_compared_with_a_text"](run)


def test_the_error_of_the_guide_is_shown_as_it_says():
    text = TEXTS["docs/design.md"]
    shown = re.search(r"shows this as `clipag: --(.*?)`", text)[1]
    with pytest.raises(clip.ClipagError) as error:
        exec(design("raise ClipagError"), {"ClipagError": clip.ClipagError, "tiles": 0})
    assert str(error.value).replace("`", "") == shown


def test_every_block_of_the_design_has_its_test():
    tested = ("class Mosaic", "test_a_mosaic", "def add(commands", "test_a_picture_is_compared",
              "raise ClipagError", *BLOCKS_ELSEWHERE)  # fmt: skip
    for code in blocks(TEXTS["docs/design.md"], "python"):
        assert any(words in code for words in tested), code
