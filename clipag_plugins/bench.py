"""How fast a guide sees an image: `clipag bench`.

The unit of work, a "look", is what guidance repeats at every step: views go forward through the
image tower, and their gradient comes back. The implementations take turns on the same views, round
after round, so that a machine that slows down slows all of them. The figures are medians. They are
compared with a limit: the time that a look's arithmetic takes at the machine's rate of matrix
products.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
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

ANIMALS = ("cat", "dog", "frog", "whale", "owl", "bee", "crab", "snail")
# The speed-up that makes a lower precision worth its rounding errors.
WORTHWHILE = 2.0
EMULATED = 10e9  # FLOP/s; below this a dtype has no hardware support
Look = Callable[[], Tensor]
LookKey = tuple[str, str]  # implementation, precision


def products_per_second(dtype: torch.dtype, device: torch.device, side: int = 1024) -> float:
    """Return how many products of side × side matrices the device computes per second."""
    a = torch.ones(side, side, dtype=dtype, device=device)
    times = []
    for _ in range(4):  # the first one is a warm-up
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 1 / min(times)


def product_rates(device: torch.device) -> dict[str, float]:
    """Return the rate of 2048 × 2048 matrix products by precision, in GFLOP/s.

    For a precision that the device emulates it is the rate of smaller products, because the large
    ones may take minutes.
    """
    rates = {}
    for name, dtype in precision.DTYPES.items():
        small, large = 256, 2048
        rate = products_per_second(dtype, device, small) * 2 * small**3
        if name == "float32" or rate > EMULATED:
            rate = products_per_second(dtype, device, large) * 2 * large**3
        rates[name] = rate / 1e9
    return rates


def advice_on_precision(rates: dict[str, float], auto: str) -> str:
    """Return a sentence if a precision has at least twice the rate of the one that auto chooses."""
    best = max(rates, key=lambda name: rates[name])
    gain = rates[best] / rates[auto]
    if gain < WORTHWHILE:
        return ""
    return f"Here {best} computes {gain:.1f} times as fast as {auto}: try --precision {best}."


def make_look(tower: nn.Module, views: Tensor, dtype: torch.dtype) -> Look:
    """Return a function that runs an image tower on views and returns their gradient.

    `views` are (V, 3, side, side), and so is the gradient. The tower computes in `dtype`.
    """
    tower = precision.in_precision(tower, dtype)
    if type(tower).__module__ == "clip.model":  # OpenAI's LayerNorm accepts only float32
        for module in tower.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()

    def look() -> Tensor:
        leaf = views.detach().requires_grad_(True)
        tower(leaf.to(dtype)).float().sum().backward()
        if leaf.is_cuda:
            torch.cuda.synchronize()
        return cast(Tensor, leaf.grad)

    return look


def implementations(name: str, device: torch.device) -> tuple[ClipagModel, dict[str, nn.Module]]:
    """Return this package's model, and the image towers to compare by implementation.

    An embedded model has only this package's implementation. The other models have random weights,
    which take the same time.

    Raises:
        ClipagError: the model is neither embedded nor an architecture of open_clip.
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
    open_clip_model = open_clip.create_model(name, device=device).eval().requires_grad_(False)
    config = open_clip.get_model_config(name)
    model = architecture.from_config(config, open_clip_model.state_dict(), name, name)
    model = model.to(device).eval().requires_grad_(False)
    towers: dict[str, nn.Module] = {"clipag": model.visual, "open_clip": open_clip_model.visual}
    vision = config["vision_cfg"]
    if find_spec("clip") and isinstance(vision.get("layers"), int):
        from clip.model import VisionTransformer

        # Its activation is always QuickGELU, which takes slightly less arithmetic than GELU.
        towers["clip-anytorch"] = VisionTransformer(
            vision["image_size"], vision["patch_size"], vision["width"], vision["layers"],
            vision["width"] // 64, config["embed_dim"],
        ).to(device).eval().requires_grad_(False)  # fmt: skip
    return model, towers


def compare(
    name: str,
    view_counts: Iterable[int],
    rounds: int,
    rates: Mapping[str, float],
    device: torch.device,
) -> list[dict[str, Any]]:
    """Time all implementations of a model, and return one result per look.

    Precisions less than half as fast as float32 are left out.

    Args:
        name: an embedded model, or an architecture of open_clip.
        view_counts: numbers of views.
        rounds: timings of which the median counts.
        rates: GFLOP/s of matrix products by precision, from `product_rates`.
        device: where to compute.

    Raises:
        ClipagError: the model is neither embedded nor an architecture of open_clip.
    """
    model, towers = implementations(name, device)
    side = model.visual.native_size
    precisions = [p for p, rate in rates.items() if p == "float32" or rate > rates["float32"] / 2]
    results = []
    for count in view_counts:
        generator = torch.Generator().manual_seed(count)
        views = torch.randn(count, 3, side, side, generator=generator).to(device)
        looks = {
            (implementation, p): make_look(tower, views, precision.DTYPES[p])
            for implementation, tower in towers.items()
            for p in precisions
        }
        gflops, cosines = _examine(looks)
        seconds = _median_seconds(looks, rounds, f"{name}, {count} views")
        for implementation, p in looks:
            key = implementation, p
            results.append(
                {
                    "model": name,
                    "views": count,
                    "implementation": implementation,
                    "precision": p,
                    "seconds": seconds[key],
                    "GFLOP": gflops[key],
                    "share of the limit": gflops[key] / rates[p] / seconds[key],
                    # clip-anytorch has random weights of its own; its gradient is not comparable.
                    "cosine": None if implementation == "clip-anytorch" else cosines[key],
                }
            )
    return results


def _examine(looks: Mapping[LookKey, Look]) -> tuple[dict[LookKey, float], dict[LookKey, float]]:
    """Return the GFLOP of each look, and the cosine of its gradient to the float32 reference.

    The reference is open_clip's gradient, or this package's for embedded models.
    """
    reference = looks.get(("open_clip", "float32"), looks["clipag", "float32"])()
    gflops, cosines = {}, {}
    for key, look in looks.items():
        # In float32: the counter does not know the packed products of other precisions.
        with FlopCounterMode(display=False) as counter:
            looks[key[0], "float32"]()
        gflops[key] = counter.get_total_flops() / 1e9
        gradient = look()
        cosines[key] = torch.cosine_similarity(
            gradient.double().flatten(), reference.double().flatten(), dim=0
        ).item()
    return gflops, cosines


def _median_seconds(
    looks: Mapping[LookKey, Look], rounds: int, description: str
) -> dict[LookKey, float]:
    times: dict[LookKey, list[float]] = {key: [] for key in looks}
    for _ in tqdm(range(rounds), desc=description, leave=False):
        for key, look in looks.items():
            began = time.perf_counter()
            look()
            times[key].append(time.perf_counter() - began)
    return {key: statistics.median(seconds) for key, seconds in times.items()}


def time_generate(rounds: int, device: torch.device) -> dict[str, float]:
    """Return the seconds of `generate()` with the embedded model, for 1 and 8 prompts."""
    model, quiet = load_model(device=device), RunOptions(progress=False)
    generate(ANIMALS, model, steps=1, options=quiet)
    cases = {
        f"{prompts}, {tries}": (count, number)
        for tries, number in (("one try", 1), ("default tries", None))
        for prompts, count in (("one prompt", 1), ("eight prompts", 8))
    }
    times: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, (count, tries) in cases.items():
            began = time.perf_counter()
            generate(ANIMALS[:count], model, tries=tries, options=quiet)
            times[case].append(time.perf_counter() - began)
    return {case: statistics.median(seconds) for case, seconds in times.items()}


def main(
    models: Iterable[str],
    view_counts: Iterable[int],
    rounds: int,
    device: torch.device,
    out: Path | None,
) -> None:
    """Print the results as a table, and write them to `out` as JSON if it is given.

    Raises:
        ClipagError: a model is neither embedded nor an architecture of open_clip.
    """
    rates = product_rates(device)
    results = []
    for name in models:
        results += compare(name, view_counts, rounds, rates, device)
    figures = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "GFLOP/s of matrix products": rates,
        "auto precision": str(precision.fastest(device)).removeprefix("torch."),
        "looks": results,
        "generate(), s": time_generate(rounds, device),
    }
    products = ", ".join(f"{p} {rate:.0f}" for p, rate in rates.items())
    print(f"Matrix products, GFLOP/s: {products}; auto chooses {figures['auto precision']}.\n")
    print("| model | views | implementation | precision | seconds | of the limit | cosine |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        cosine = "" if result["cosine"] is None else f"{result['cosine']:.6f}"
        print(
            f"| {result['model']} | {result['views']} | {result['implementation']} "
            f"| {result['precision']} | {result['seconds']:.3f} "
            f"| {result['share of the limit']:.0%} | {cosine} |"
        )
    if advice := advice_on_precision(rates, str(figures["auto precision"])):
        print(f"\n{advice}")
    print("\ngenerate() with the embedded model, s:", json.dumps(figures["generate(), s"]))
    if out is not None:
        write_json(out, figures)
