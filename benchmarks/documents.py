"""The code blocks of README and docs/, and which commands need more than the package."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from clipag_plugins import embedded
from clipag_plugins.hub import load_model
from clipag_plugins.publish import save_pretrained

from . import ROOT

DOCUMENTS = (ROOT / "README.md", ROOT / "finetune" / "README.md", *sorted(ROOT.glob("docs/*.md")))
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in DOCUMENTS}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Lines that need more than the package and some pictures, by their first words.
LINES_ELSEWHERE = {
    "pip install": "fetches packages; test_package.py installs the wheel",
    "uvx": "fetches packages",
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
    "clipag decoder": "minutes; test_decoder.py",
    "clipag unclip": "needs a prior and a decoder; test_decoder.py",
    "clipag generate a red apple --model clipag-mini --prior": "needs a prior; test_prior.py",
    "clipag convert": "fetches a model; test_checkpoints.py",
    "clipag comfyui": "needs ComfyUI; test_comfyui.py",
    "clipag studio": "serves until Ctrl-C; test_studio_page.py",
}


def blocks(text: str, *languages: str) -> list[str]:
    """Return the fenced code blocks in these languages; shell commands have none or "bash"."""
    return [code for language, code in FENCE.findall(text) if language in languages]


def shell_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each line of a document's shell blocks, without comments."""
    for code in blocks(text, "", "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the document and the words of each command that runs with `write_files`' files."""
    for name, text in TEXTS.items():
        for words in shell_lines(text):
            if not any(" ".join(words).startswith(start) for start in LINES_ELSEWHERE):
                yield name, words


def write_files(folder: Path) -> None:
    """Write the pictures and other files that the documents' commands read."""
    (folder / "examples").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "cat-face.png", folder / "examples")
    with Image.open(ROOT / "examples" / "cat-face.png") as file:
        picture = file.convert("RGB")
    for name in ("photo.jpg", "cat.jpg", "dog.jpg", "bear.jpg", "apple.jpg", "apple.png"):
        picture.save(folder / name)
    # A command asks for 64 components, which as many pictures do not have.
    for name, count in (("pictures", 4), ("photos", 70)):
        (folder / name).mkdir()
        for number in range(count):
            rotated = picture.resize((64, 64)).rotate(360 * number / count)
            rotated.save(folder / name / f"{number}.png")
    (folder / "prompts.txt").write_text("a cat\na dog\na bear\nan apple\n", "utf-8")
    np.save(folder / "embeddings.npy", np.random.default_rng(0).normal(size=(2, 768)))
    mixture = embedded.checked_path(embedded.read_config()["gmm"])
    shutil.copy(mixture, folder / "tiny.safetensors")
    save_pretrained(load_model(), folder / "runs" / "mini" / "model")
