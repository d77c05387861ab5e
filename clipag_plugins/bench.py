"""How fast a guide looks at an image: `clipag bench`.

One look is what guidance repeats: views forward through the image tower, and the gradient
back to them. Every implementation looks at the same views in turn, round after round, so
that a machine that slows down slows all of them; figures are medians. The limit is what the
look's own arithmetic would take at the rate of the machine's matrix products.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from . import architecture, precision
from .arguments import RunOptions
from .base import ClipagModel
from .errors import ClipagError
from .files import write_json
from .hub import load_model
from .sampler import generate

MODELS = ("clipag-mini", "ViT-B-32", "ViT-B-16", "convnext_base")
VIEWS = (1, 8, 32, 64)
Look = Callable[[], Tensor]


def rates(device: torch.device) -> dict[str, float]:
    """Return GFLOP a second of 2048 × 2048 products, by precision; 0 where it is hopeless."""
    result = {}
    for name, dtype in precision.PRECISIONS.items():
        small, side = 256, 2048
        # A type that the device only emulates may take minutes for the large one.
        trial = precision.products_per_second(dtype, device, small) * 2 * small**3
        if name == "float32" or trial > 10e9:
            trial = precision.products_per_second(dtype, device, side) * 2 * side**3
        result[name] = trial / 1e9
    return result


def look(tower: nn.Module, views: Tensor, dtype: torch.dtype) -> Look:
    """Return what runs a tower over views (V, 3, side, side) and gives their gradient."""
    tower = precision.in_precision(tower, dtype)
    if type(tower).__module__ == "clip.model":  # whose LayerNorm takes nothing but float32
        for part in tower.modules():
            if isinstance(part, nn.LayerNorm):
                part.float()

    def run() -> Tensor:
        seen = views.detach().requires_grad_(True)
        tower(seen.to(dtype)).float().sum().backward()
        if seen.is_cuda:
            torch.cuda.synchronize()
        return cast(Tensor, seen.grad)

    return run


def implementations(name: str, device: torch.device) -> tuple[ClipagModel, dict[str, nn.Module]]:
    """Return our model and every image tower with the same weights, by whose it is.

    Embedded models have no peer. Of the others the weights are random, which costs the same
    time.
    """
    if name.endswith("-mini"):
        model = load_model(name, device)
        return model, {"clipag": model.visual}
    import open_clip

    if name not in open_clip.list_models():
        raise ClipagError(
            f"There is no model {name!r} to time: name clipag-mini or an architecture of "
            "open_clip, such as ViT-B-32."
        )
    torch.manual_seed(0)
    theirs = open_clip.create_model(name, device=device).eval().requires_grad_(False)
    config = open_clip.get_model_config(name)
    model = architecture.from_config(config, theirs.state_dict(), name, name)
    model = model.to(device).eval().requires_grad_(False)
    towers: dict[str, nn.Module] = {"clipag": model.visual, "open_clip": theirs.visual}
    vision = config["vision_cfg"]
    if find_spec("clip") and isinstance(vision.get("layers"), int):
        from clip.model import VisionTransformer

        # Its activation is QuickGELU whatever the config says: as much arithmetic, less a little.
        towers["clip-anytorch"] = VisionTransformer(
            vision["image_size"], vision["patch_size"], vision["width"], vision["layers"],
            vision["width"] // 64, config["embed_dim"],
        ).to(device).eval().requires_grad_(False)  # fmt: skip
    return model, towers


def compare(
    name: str, counts: Iterable[int], rounds: int, rate: dict[str, float], device: torch.device
) -> list[dict[str, Any]]:
    """Time every implementation in every precision that is worth it, and return the rows."""
    model, towers = implementations(name, device)
    side = model.visual.native_size
    worth = [p for p, r in rate.items() if p == "float32" or r > rate["float32"] / 2]
    rows = []
    for count in counts:
        generator = torch.Generator().manual_seed(count)
        views = torch.randn(count, 3, side, side, generator=generator).to(device)
        looks = {
            (whose, p): look(tower, views, precision.PRECISIONS[p])
            for whose, tower in towers.items()
            for p in worth
        }
        reference = (
            looks.get(("open_clip", "float32"), looks["clipag", "float32"])().double().flatten()
        )
        work, cosine = {}, {}
        for key, run in looks.items():
            with FlopCounterMode(display=False) as counter:
                gradient = run()
            work[key] = counter.get_total_flops() / 1e9
            cosine[key] = torch.cosine_similarity(
                gradient.double().flatten(), reference, dim=0
            ).item()
        times: dict[tuple[str, str], list[float]] = {key: [] for key in looks}
        for _ in tqdm(range(rounds), desc=f"{name}, {count} views", leave=False):
            for key, run in looks.items():
                began = time.perf_counter()
                run()
                times[key].append(time.perf_counter() - began)
        for whose, p in looks:
            seconds = statistics.median(times[whose, p])
            rows.append(
                {
                    "model": name,
                    "views": count,
                    "implementation": whose,
                    "precision": p,
                    "seconds": seconds,
                    "GFLOP": work[whose, p],
                    "share of the limit": work[whose, p] / rate[p] / seconds,
                    # Other weights, other gradient.
                    "cosine": None if whose == "clip-anytorch" else cosine[whose, p],
                }
            )
    return rows


def pictures(rounds: int, device: torch.device) -> dict[str, float]:
    """Return seconds of `generate()` with the embedded model: one prompt and eight, by tries."""
    model, quiet = load_model(device=device), RunOptions(progress=False)
    animals = ["cat", "dog", "frog", "whale", "owl", "bee", "crab", "snail"]
    generate(animals, model, steps=1, options=quiet)
    kinds = {
        f"{prompts}, {tries}": (count, number)
        for tries, number in (("one try", 1), ("default tries", None))
        for prompts, count in (("one prompt", 1), ("eight prompts", 8))
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (count, tries) in kinds.items():
            began = time.perf_counter()
            generate(animals[:count], model, tries=tries, options=quiet)
            times[kind].append(time.perf_counter() - began)
    return {kind: statistics.median(spent) for kind, spent in times.items()}


def main(
    models: Iterable[str],
    counts: Iterable[int],
    rounds: int,
    device: torch.device,
    out: Path | None,
) -> None:
    """Print the table, and write everything to `out` as JSON if it is given.

    Raises:
        ClipagError: a model is neither embedded nor an architecture of open_clip.
    """
    rate = rates(device)
    rows = []
    for name in models:
        rows += compare(name, counts, rounds, rate, device)
    figures = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "GFLOP/s of matrix products": rate,
        "auto precision": str(precision.fastest(device)).removeprefix("torch."),
        "looks": rows,
        "generate(), s": pictures(rounds, device),
    }
    products = ", ".join(f"{p} {r:.0f}" for p, r in rate.items())
    print(f"Matrix products, GFLOP/s: {products}; auto chooses {figures['auto precision']}.\n")
    print("| model | views | implementation | precision | seconds | of the limit | cosine |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cosine = "" if row["cosine"] is None else f"{row['cosine']:.6f}"
        print(
            f"| {row['model']} | {row['views']} | {row['implementation']} | {row['precision']} "
            f"| {row['seconds']:.3f} | {row['share of the limit']:.0%} | {cosine} |"
        )
    print("\ngenerate() with the embedded model, s:", json.dumps(figures["generate(), s"]))
    if out is not None:
        write_json(out, figures)
