"""Make the embedded models from nothing: what `make weights` runs.

Every stage is one module that can also be run alone, keeps its result in the work folder,
is skipped when the result is there, and goes on from its last checkpoint after a kill. To make
a stage anew, remove its result and those of the stages after it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

STAGES: tuple[tuple[str, list[str], str], ...] = (
    ("corpus", [], "captions.json"),
    ("text_tower", [], "text.safetensors"),
    ("image_tower", ["vanilla"], "vanilla.safetensors"),
    ("image_tower", ["clipag"], "clipag.safetensors"),
    ("starts", [], "gmm.safetensors"),
    ("vqgan", [], "vqgan.safetensors"),
)


def main(work: Path, out: Path) -> None:
    """Run every stage whose result is missing, then export."""
    work.mkdir(parents=True, exist_ok=True)
    for module, arguments, result in STAGES:
        if not (work / result).exists():
            _run(module, *arguments, "--work", str(work))
    _run("export", "--work", str(work), "--out", str(out))


def _run(module: str, *arguments: str) -> None:
    # A process a stage: memory is given back, and a kill leaves the others' results alone.
    command = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
    if code := subprocess.run(command).returncode:
        sys.exit(code)  # the stage has said why


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("clipag_plugins/weights"))
    options = parser.parse_args()
    main(options.work, options.out)
