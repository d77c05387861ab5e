"""Make the embedded models from nothing: what `make weights` runs.

Every stage is a module that can also be run alone. It writes its result to the work folder, is
skipped if the result exists, and resumes from its last checkpoint after a kill. To repeat a stage,
remove its result and those of the stages after it, and for an image tower its folder, clip-mini or
clipag-mini.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# Module, its arguments, and its result in the work folder.
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
    # One process for each stage, which frees its memory at the end.
    command = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
    if code := subprocess.run(command).returncode:
        sys.exit(code)  # the stage has printed the reason


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("clipag_plugins/weights"))
    options = parser.parse_args()
    main(options.work, options.out)
