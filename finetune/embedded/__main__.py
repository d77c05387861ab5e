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

import torch

from clipag_plugins.finetune.embedded.pack import TRUNKS

MINUTES_ON_GPU, MINUTES_ON_CPU = 8.0, 480.0
LARGE = "160"  # side in pixels of the pictures that the fine tower is trained on

# Module, its arguments, and its result. {work} is the work folder.
WORK = ("--work", "{work}")
STAGES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("corpus", WORK, "captions.json"),
    ("text_tower", WORK, "text.safetensors"),
    ("image_tower", ("vanilla", *WORK), "vanilla.safetensors"),
    ("image_tower", ("clipag", *WORK), "clipag.safetensors"),
    ("corpus", (*WORK, "--out", "{work}/large", "--size", LARGE), "large/captions.json"),
    (
        "pack",
        (*WORK, "--pictures", "{work}/large", "--out", "{work}/pack"),
        f"pack/{TRUNKS[-1]}.safetensors",
    ),
    ("robust_tower", ("--pack", "{work}/pack", "--out", "{work}"), "robust.safetensors"),
    ("starts", WORK, "gmm.safetensors"),
    ("vqgan", WORK, "vqgan.safetensors"),
)


def main(work: Path, out: Path, minutes: float) -> None:
    """Run every stage whose result is missing, then export, and train the prior.

    Args:
        work: folder of the stages' results.
        out: folder of the embedded weights.
        minutes: of adversarial training of the fine tower.
    """
    work.mkdir(parents=True, exist_ok=True)
    for module, arguments, result in STAGES:
        if not (work / result).exists():
            more = ("--minutes", str(minutes)) if module == "robust_tower" else ()
            _run(module, *(argument.format(work=work) for argument in arguments), *more)
    for module in ("export", "prior"):
        _run(module, "--work", str(work), "--out", str(out))


def _run(module: str, *arguments: str) -> None:
    # One process for each stage, which frees its memory at the end.
    command = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
    if code := subprocess.run(command).returncode:
        sys.exit(code)  # the stage has printed the reason


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("clipag_plugins/weights"))
    on_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES_ON_GPU if on_gpu else MINUTES_ON_CPU,
        help="of adversarial training of clipag-lite's fine tower",
    )
    options = parser.parse_args()
    main(options.work, options.out, options.minutes)
