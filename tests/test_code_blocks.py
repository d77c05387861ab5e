"""Every code block of README and docs/ runs here, or is listed here with the reason why not.

Commands run as they stand, but with fewer steps, on pictures with the names that the documents use.
"""

import argparse
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from test_documents import ROOT, TEXTS, blocks, shell_lines

import clipag_plugins as clip
from clipag_plugins import canvas, embedded
from clipag_plugins.commands import options as command_options
from clipag_plugins.publish import save_pretrained

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

# Lines that do not run here, by their first words.
LINES_ELSEWHERE = {
    "pip install": "fetches packages; test_package.py installs the wheel",
    "make": "the tests themselves, or hours",
    ".venv/bin/python -m pytest": "the tests themselves",
    "python -m benchmarks.comfyui": "needs a clone of ComfyUI; test_comfyui_server.py",
    "python -m clipag_plugins.finetune.embedded.starts": "needs a data set; test_embedded.py",
    "torchrun": "needs eight GPUs; test_finetune_gradient.py has two processes",
    "head=$(scontrol": "needs a cluster",
    "srun": "needs a cluster",
    "clipag run": "scripts of others; test_shims.py has such",
    "clipag finetune": "minutes; test_finetune_runs.py",
    "clipag prior": "minutes; test_prior.py",
    "clipag generate a red apple --prior": "needs a prior; test_prior.py",
    "clipag convert": "fetches a model; test_checkpoints.py",
    "clipag comfyui": "needs ComfyUI; test_comfyui.py",
    "clipag studio": "serves until Ctrl-C; test_studio_page.py",
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

LINES = [(name, " ".join(words), words) for name in TEXTS for words in shell_lines(TEXTS[name])]
PYTHON = [(name, code) for name in TEXTS for code in blocks(TEXTS[name], "python")]


def is_elsewhere(line):
    return any(line.startswith(words) for words in LINES_ELSEWHERE)


def test_the_lists_name_only_what_the_documents_have():
    for words in LINES_ELSEWHERE:
        assert any(line.startswith(words) for _, line, _ in LINES), words
    for words in BLOCKS_ELSEWHERE:
        assert any(words in code for _, code in PYTHON), words
    commands = {words[1] for _, line, words in LINES if not is_elsewhere(line)}
    assert commands == set(QUICK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """A folder with the files that the documents name."""
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "examples").mkdir()
    cat = ROOT / "examples" / "cat-face.png"
    shutil.copy(cat, folder / "examples")
    with Image.open(cat) as file:
        picture = file.convert("RGB")
    for name in ("photo.jpg", "cat.jpg", "dog.jpg", "bear.jpg", "apple.jpg", "apple.png"):
        picture.save(folder / name)
    for name in ("pictures", "photos"):
        (folder / name).mkdir()
        for number in range(4):
            picture.rotate(90 * number).save(folder / name / f"{number}.png")
    (folder / "prompts.txt").write_text("a cat\na dog\na bear\nan apple\n")
    np.save(folder / "embeddings.npy", np.random.default_rng(0).normal(size=(2, 384)))
    shutil.copy(embedded.checked_path(embedded.read_config()["gmm"]), folder / "tiny.safetensors")
    save_pretrained(model, folder / "runs" / "mini" / "model")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "line", "words"), [each for each in LINES if not is_elsewhere(each[1])]
)
def test_a_command_runs(run, folder, name, line, words):
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
