"""What `generate` draws on: pixels, a pyramid of resolutions and a spectrum, judged side by side.

    python -m benchmarks.canvases                    # both models, 25 seen captions, one try
    python -m benchmarks.canvases --prompts 10       # printed and not kept
    python -m benchmarks.canvases figure             # the first prompts, docs/figures/canvases.webp

The judge (`benchmarks/judge.py`) took no part in the guidance. Starts, views and seed are the same
for all canvases; steps are the sampler's defaults. The judge chooses among all 100 seen captions.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from clipag_plugins.arguments import RunOptions
from clipag_plugins.ascent import Ascent
from clipag_plugins.base import ClipagModel
from clipag_plugins.defaults import CANVASES
from clipag_plugins.hub import load_model
from clipag_plugins.sampler import sample, settings_for

from . import FIGURES, keep_table
from .common import digest_of_package, judged_twice, pictures_of, write_figure
from .groups import prompts_of
from .judge import Judge

MODELS = ("clip-lite", "clipag-lite")
PROMPTS = 25


def drawn(model: ClipagModel, canvas: str, seed: int, prompts: list[str]) -> Ascent:
    """Draw prompts on a canvas, one try each."""
    settings = settings_for(model, canvas=canvas, tries=1)
    return sample(prompts, model, settings, seed=seed, options=RunOptions(progress=False))


def main(options: argparse.Namespace) -> None:
    """Draw with every model on every canvas, judge, and keep the table or write the figure."""
    judge, digest = Judge.load(), digest_of_package()
    every = prompts_of("seen")
    prompts = every[: options.prompts]
    rows, folders = [], []
    for name in MODELS:
        model = load_model(name)
        for canvas in CANVASES[1:]:
            folder = options.work / f"{name}-{digest}-{options.seed}" / canvas
            draw = partial(drawn, model, canvas, options.seed)
            images = pictures_of(draw, prompts, folder, {"seed": options.seed})
            row: dict[str, Any] = {"model": name, "canvas": canvas}
            row |= judged_twice(judge, images, every)
            print(json.dumps(row), flush=True)
            rows.append(row)
            folders.append(folder)
    if options.what == "figure":
        write_figure(FIGURES / "canvases.webp", prompts, folders)
    elif options.prompts == PROMPTS and not options.seed:
        keep_table("canvases", {"judge": judge.name, "seed": options.seed}, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", choices=["table", "figure"], default="table")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/canvases"))
    main(parser.parse_args())
