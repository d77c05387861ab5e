"""Libraries that a machine without a network gets from a folder of wheels."""

import importlib
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

# Modules of the libraries that the parts use, by the libraries' names.
LIBRARIES = {
    "torchvision": "torchvision", "open_clip_torch": "open_clip", "kornia": "kornia",
    "kornia_rs": "kornia_rs", "ftfy": "ftfy", "timm": "timm", "torchattacks": "torchattacks",
    "taming-transformers-rom1504": "taming", "huggingface_hub": "huggingface_hub",
    "safetensors": "safetensors", "numpy": "numpy", "triton": "triton",
}  # fmt: skip


def install(wheels: Path, target: Path) -> dict[str, str]:
    """Unpack wheels into a folder, and let this process and those that it starts import from it.

    What is installed already comes first.

    Args:
        wheels: a folder of .whl files.
        target: where they are unpacked, an empty folder.

    Returns:
        The reasons of pip, by the names of the wheels that could not be unpacked.
    """
    failures = {}
    files = sorted(wheels.glob("*.whl"))
    if not files:
        return {str(wheels): "there is no wheel in this folder"}
    if _pip(files, target):
        for file in files:
            if reason := _pip([file], target):
                failures[file.name] = reason
    sys.path.append(str(target))
    importlib.invalidate_caches()
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(target)]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    return failures


def _pip(files: list[Path], target: Path) -> str:
    """Let pip unpack wheels; return its last word if it fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
               "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(target)]  # fmt: skip
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip() or "pip failed").splitlines()[-1]


def versions() -> dict[str, str]:
    """Return the version of each library, or that it is missing."""
    return {name: _version(name, module) for name, module in LIBRARIES.items()}


def _version(name: str, module: str) -> str:
    if find_spec(module) is None:
        return "missing"
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
