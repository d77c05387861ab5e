"""What a guided step of Stable Diffusion costs in ComfyUI, beside an unguided one.

    python -m benchmarks.comfyui_cost COMFYUI_DIR
    python -m benchmarks.comfyui_cost COMFYUI_DIR --size SDXL --precision bfloat16   # this row anew

Run it with the Python that runs ComfyUI. The models are ComfyUI's own, with random weights and the
shapes of Stable Diffusion 1.5 and SDXL; each is measured in a process of its own. Time is that of
the processor (on a GPU, that of the clock). SDXL takes 12 GB of memory.
"""

import argparse
import json
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from clipag_plugins.defaults import MODEL

from . import RESULTS, keep
from .comfyui_inside import node, start_comfyui

NAME = "comfyui_cost"
CASES = (("SD 1.5", "float32"), ("SD 1.5", "bfloat16"), ("SDXL", "bfloat16"))
SIDE = 16  # of the latents
CFG = 4.0


def seconds_now() -> float:
    """Return the seconds that this process has computed; on a GPU, those of the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measured(comfyui: Path, size: str, precision: str, side: int) -> dict[str, object]:
    """Return what a step costs without and with the guide, in a process that does nothing else.

    Args:
        comfyui: the folder of a ComfyUI.
        size: "SD 1.5" or "SDXL".
        precision: of the diffusion model and its VAE.
        side: of the latents.
    """
    nodes = start_comfyui(comfyui)
    from .comfyui_tiny import RandomDiffusion

    with torch.inference_mode():
        diffusion, vae, positive, negative = RandomDiffusion().run(size, precision)
    guided = node(
        "ClipagGuideDiffusion", diffusion=diffusion, vae=vae,
        model=node("ClipagLoadModel", model_name=MODEL), target=node("ClipagTextTarget"),
    )  # fmt: skip
    seconds, latents = [], []
    for model in (diffusion, guided):
        with torch.inference_mode():
            before = seconds_now()
            (latent,) = nodes.common_ksampler(
                model, 0, 1, CFG, "euler", "normal", positive, negative,
                {"samples": torch.zeros(1, 4, side, side)},
            )  # fmt: skip
            seconds.append(seconds_now() - before)
            latents.append(latent["samples"])
    return {
        "size": size,
        "precision": precision,
        "pixels": 8 * side,
        "seconds a step": seconds[0],
        "seconds a guided step": seconds[1],
        "finite": bool(latents[1].isfinite().all()),
        "changed": bool((latents[0] != latents[1]).any()),
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Measure the cases, and keep them beside those that were measured before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comfyui_cost", description=__doc__)
    parser.add_argument("comfyui", type=Path, help="the folder of a ComfyUI, with main.py")
    parser.add_argument("--size", choices=[*dict(CASES)])
    parser.add_argument("--precision", choices=["float32", "bfloat16"])
    parser.add_argument("--side", type=int, default=SIDE, help="of the latents (default: 16)")
    options = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    rows: list[dict[str, Any]] = []
    if path.exists():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for size, precision in CASES:
        if options.size in (None, size) and options.precision in (None, precision):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                row = pool.submit(measured, options.comfyui, size, precision, options.side).result()
            rows = [r for r in rows if (r["size"], r["precision"]) != (size, precision)] + [row]
            rows.sort(key=lambda row: CASES.index((row["size"], row["precision"])))
            keep(NAME, {"guide": MODEL, "views": "as suits the model", "rows": rows})


if __name__ == "__main__":
    main()
