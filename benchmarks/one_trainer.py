"""The loss curves of the embedded image towers, beside those of the trainer that made them.

    python -m benchmarks.one_trainer --work build/weights --out build/one_trainer

The published towers of `clip-mini` and `clipag-mini` were made by a training script of their own;
now both are `clipag finetune clip-mini` and `clipag-mini`. This runs the first 200 updates of both
configs with the text tower of the package; `clipag-mini` starts from the image tower of
`clip-mini`. `--work` holds the corpus. Curves are means of 20 updates.

The former script's curves are kept in results/one_trainer.json with its commit: those of its own
batches, which it drew with replacement, and those of the current trainer's batches, on which it was
run once to separate the order of the data from all else.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipag_plugins import embedded, mini
from clipag_plugins.finetune import config, train
from clipag_plugins.finetune.embedded.recipe import MINI

from . import RESULTS, keep

STEPS = 200
WINDOW = 20  # updates that one point of a curve is the mean of
KINDS = ("clip-mini", "clipag-mini")


def write_start(kind: str, folder: Path, seed: int) -> Path:
    """Write the model to start from: without the memory, which is no part of training."""
    torch.manual_seed(seed)
    start, published = mini.build_model(MINI, "start"), embedded.load("clip-mini")
    published_text: Any = published.text
    words = {k: v for k, v in published_text.state_dict().items() if not k.startswith("memory.")}
    start.text.load_state_dict(words)
    if kind == "clipag-mini":
        start.visual.load_state_dict(published.visual.state_dict())
    return start.save_pretrained(folder)


def losses(kind: str, work: Path, out: Path, seed: int) -> list[float]:
    """Train for 200 updates, and return the loss of each."""
    run = out / f"{kind}-{seed}"
    start = write_start(kind, out / f"{kind}-{seed}-start", seed)
    changes = [f"model='{start}'", f"data.0.path='{work}'", f"seed={seed}", f"steps={STEPS}",
               "picture_every=0", "validation.kind=''"]  # fmt: skip
    train.train(config.read(kind, changes), run, torch.device("cpu"))
    log = EventAccumulator(str(run / "log"), {"scalars": 0}).Reload()
    return [event.value for event in log.Scalars("loss")]


def windows(curve: list[float]) -> list[float]:
    """Return the means of a curve's windows."""
    return [round(mean(curve[i : i + WINDOW]), 4) for i in range(0, len(curve), WINDOW)]


def compare(former: list[list[float]], current: list[list[float]]) -> dict[str, Any]:
    """Compare two trainers' windowed curves, each of one seed or several."""
    before, after = (
        [mean(values) for values in zip(*curves, strict=True)] for curves in (former, current)
    )
    differences = [b - a for a, b in zip(before, after, strict=True)]
    spreads = [
        stdev(values)
        for curves in (former, current)
        if len(curves) > 1
        for values in zip(*curves, strict=True)
    ]
    return {
        "difference": [round(value, 4) for value in differences],
        "mean relative difference": round(mean(differences) / mean(before), 4),
        "mean standard deviation of seeds": round(mean(spreads), 4) if spreads else None,
    }


def main(work: Path, out: Path, kinds: list[str], seeds: list[int]) -> None:
    """Train from every seed, and compare with the former trainer's curves."""
    out.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "one_trainer.json"
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for kind in kinds:
        curves = [windows(losses(kind, work, out, seed)) for seed in seeds]
        former = figures["former"]
        figures["current"][kind] = curves
        figures["comparison"][kind] = compare(former[kind], curves)
        if kind in former["on the batches of the current trainer, seed 0"] and 0 in seeds:
            same = former["on the batches of the current trainer, seed 0"][kind]
            figures["comparison"][f"{kind}, same batches"] = compare(
                [same], [curves[seeds.index(0)]]
            )
    keep("one_trainer", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("build/one_trainer"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    main(options.work, options.out, options.kinds, options.seeds)
