"""How fast the guide is on a GPU: its limit, the image tower, a whole step, compilation."""

import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from clipag_plugins import bench, precision
from clipag_plugins.arguments import RunOptions
from clipag_plugins.base import ClipagModel, normalize
from clipag_plugins.canvas import NormalizedGradient, PixelCanvas
from clipag_plugins.defaults import SIDE
from clipag_plugins.graphs import CALLS_BEFORE_RECORDING
from clipag_plugins.guide import Guide
from clipag_plugins.targets import Target
from clipag_plugins.views import MakeViews, Views, one_view

from .. import ROOT
from ..strokes import ours as stroke_scene
from .meter import Meter, Run

LOWER = ("bfloat16", "float16")
Figures = dict[str, Any]


def limit(meter: Meter) -> Figures:
    """Measure what the device can do at most: matrix products and copies of random data."""
    side, count = (256, 2**16) if meter.quick else (8192, 2**30)
    products: Figures = {}
    for name, dtype in precision.DTYPES.items():
        a, b = (torch.randn(side, side, device=meter.device).to(dtype) for _ in range(2))
        seconds = _seconds_of_many(meter, partial(torch.matmul, a, b))
        products[name] = 2 * side**3 / seconds / 1e12
    source = torch.randint(256, (count,), dtype=torch.uint8, device=meter.device)
    target = torch.empty_like(source)
    seconds = _seconds_of_many(meter, lambda: target.copy_(source))
    return {
        "side": side,
        "TFLOP/s": {name: round(rate, 3) for name, rate in products.items()},
        "copied, TB/s": round(2 * count / seconds / 1e12, 3),
    }


def _seconds_of_many(meter: Meter, run: Run, repeats: int = 10) -> float:
    """Return the seconds of one run of many in a row, so that starting them costs nothing."""

    def many() -> None:
        for _ in range(repeats):
            run()

    return meter.medians({"": many}, 5)[""] / repeats


def cases(meter: Meter) -> list[tuple[str, list[int]]]:
    """Return the architectures, each with its numbers of views."""
    if meter.quick:
        return [("ViT-S-32-alt", [2])]
    return [("ViT-B-32", [64, 1, 8, 256]), ("ViT-L-14", [64])]


@cache
def towers(name: str, device: torch.device) -> tuple[ClipagModel, nn.Module]:
    """Return this package's model of an architecture, and open_clip's image tower, frozen.

    Both have the same random weights.
    """
    with torch.device(device):  # hundreds of millions of random numbers, drawn by the GPU
        model, by_package = bench.implementations(name, device)
    return model, by_package["open_clip"]


def recorded(look: Run, meter: Meter) -> Run:
    """Record a run as one CUDA graph, and return what replays it: no kernel waits for Python."""
    stream = torch.cuda.Stream(meter.device)
    stream.wait_stream(torch.cuda.current_stream(meter.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            look()
    torch.cuda.current_stream(meter.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = look()

    def replay() -> object:
        graph.replay()
        return result

    return replay


def _look(tower: nn.Module, views: Tensor, name: str) -> Callable[[], Tensor]:
    """Return a function that returns the gradient of a tower's embeddings, summed, by its views."""
    dtype = precision.DTYPES[name]
    tower = precision.in_precision(tower, dtype)
    leaf = views.detach().clone().requires_grad_(True)

    def look() -> Tensor:
        (gradient,) = torch.autograd.grad(tower(leaf.to(dtype)).float().sum(), leaf)
        return gradient

    return look


def looks(meter: Meter, rates: dict[str, float]) -> Figures:
    """Time the image tower, forward and back to the views, beside open_clip's.

    `rates` are the device's matrix products by precision, in TFLOP/s.
    """
    figures: Figures = {}
    for name, counts in cases(meter):
        model, peer = towers(name, meter.device)
        for count in counts:
            key = f"{name}, {count} views"
            figures[key] = _guarded(_compare_looks, meter, model, peer, count, rates)
            _forget()
    return figures


def _compare_looks(
    meter: Meter, model: ClipagModel, peer: nn.Module, count: int, rates: dict[str, float]
) -> Figures:
    side = model.visual.native_size
    views = torch.randn(count, 3, side, side, device=meter.device)
    runs: dict[str, Callable[[], Tensor]] = {
        f"{implementation}, {name}": _look(tower, views, name)
        for implementation, tower in (("clipag", model.visual), ("open_clip", peer))
        for name in (LOWER if meter.is_cuda else ("float32",))
    }
    with FlopCounterMode(display=False) as counter:
        reference = bench.make_look(peer, views, torch.float32)()
    tera = counter.get_total_flops() / 1e12
    cosines = {name: cosine(run(), reference) for name, run in runs.items()}
    peaks = {name: meter.peak_megabytes(run) for name, run in runs.items()}
    failures = {}
    if meter.is_cuda:
        for name in list(runs):
            try:
                runs[f"{name}, recorded"] = recorded(runs[name], meter)  # type: ignore[assignment]
            except Exception as error:
                failures[f"{name}, recorded"] = repr(error)[:300]
    seconds = meter.medians(runs)
    rate = {name: rates.get(name.split(", ")[1], 0.0) for name in runs}
    eager = {name: s for name, s in seconds.items() if "recorded" not in name}
    return {
        "TFLOP": tera,
        "seconds": seconds,
        "share of the limit": {
            name: round(tera / s / rate[name], 3) for name, s in seconds.items() if rate[name]
        },
        "ours against open_clip": round(
            min(s for name, s in eager.items() if name.startswith("open_clip"))
            / min(s for name, s in seconds.items() if name.startswith("clipag")), 3,
        ),
        "cosine": cosines,
        "peak memory, MB": peaks,
        "failed": failures,
    }  # fmt: skip


def views_of(count: int) -> MakeViews:
    """Return so many views in the notebook's proportion."""
    return one_view if count == 1 else Views(count // 2, count - count // 2)


def our_step(
    model: ClipagModel, count: int, meter: Meter, compile: bool = False, max_views: int = 64
) -> Run:
    """Return one guided step of pixels as this package makes it."""
    start = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    canvas = PixelCanvas(start.to(meter.device))
    goal = Target(F.normalize(torch.ones(model.visual.output_dim, device=meter.device), dim=0))
    options = RunOptions(compile=compile, max_views=max_views)
    guide = Guide(model, [[goal]], views_of(count), seeds=[0], options=options)
    optimizer = canvas.optimizer()

    def step() -> None:
        loss = guide.loss(canvas.render())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        canvas.constrain()

    return step


def plain_step(tower: nn.Module, width: int, count: int, meter: Meter, name: str) -> Run:
    """Return one guided step with the same views and another tower, written straight down."""
    dtype = precision.DTYPES[name]
    tower = precision.in_precision(tower, dtype)
    start = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    pixels = nn.Parameter(start.to(meter.device))
    goal = F.normalize(torch.ones(width, device=meter.device), dim=0)
    make_views = views_of(count)
    optimizer = NormalizedGradient([pixels], 0.01)

    def step() -> None:
        views, weights = make_views(pixels, SIDE)
        z = F.normalize(tower(normalize(views.flatten(0, 1)).to(dtype)).float(), dim=-1)
        loss = -(weights * (z @ goal)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)

    return step


def steps(meter: Meter) -> Figures:
    """Time a whole guided step, views included, beside the same step with open_clip's tower."""
    figures: Figures = {}
    for name, counts in cases(meter):
        model, peer = towers(name, meter.device)
        for count in counts:
            key = f"{name}, {count} views"
            figures[key] = _guarded(_compare_steps, meter, model, peer, count)
            _forget()
    return figures


def _compare_steps(meter: Meter, model: ClipagModel, peer: nn.Module, count: int) -> Figures:
    width, make_views = model.visual.output_dim, views_of(count)
    picture = torch.rand(1, 3, SIDE, SIDE, device=meter.device)
    runs: dict[str, Run] = {"clipag": our_step(model, count, meter)}
    if count > 64:
        runs["clipag, all views at once"] = our_step(model, count, meter, max_views=count)
    for name in LOWER if meter.is_cuda else ("float32",):
        runs[f"open_clip, {name}"] = plain_step(peer, width, count, meter, name)
    runs["the views alone"] = lambda: make_views(picture, SIDE)
    if meter.is_cuda:
        for _ in range(CALLS_BEFORE_RECORDING + 1):  # then our guides replay their tower
            for name in runs.keys() & {"clipag", "clipag, all views at once"}:
                runs[name]()
    peaks = {name: meter.peak_megabytes(run) for name, run in runs.items()}
    seconds = meter.medians(runs, 10)
    fastest = min(s for name, s in seconds.items() if name.startswith("open_clip"))
    return {
        "seconds": seconds,
        "ours against open_clip": round(fastest / seconds["clipag"], 3),
        "peak memory, MB": peaks,
    }


def compiled(meter: Meter) -> Figures:
    """Time a step before and after `compile`, and the first compiled step."""
    name, count = ("ViT-S-32-alt", 2) if meter.quick else ("ViT-B-32", 64)
    model, peer = towers(name, meter.device)
    figures: Figures = {"model": name, "views": count}
    before = our_step(model, count, meter)
    for _ in range(0 if meter.quick else CALLS_BEFORE_RECORDING + 1):
        before()
    if meter.quick:  # a minute on a CPU
        return {**figures, "before, s": meter.medians({"": before})[""]}
    after = our_step(model, count, meter, compile=True)
    figures["first step, s"] = meter.once(after)
    figures["second step, s"] = meter.once(after)
    times = meter.medians({"before": before, "after": after})
    figures |= {f"{key}, s": seconds for key, seconds in times.items()}
    side = model.visual.native_size
    views = torch.randn(count, 3, side, side, device=meter.device)
    figures["towers, s"] = {}
    for package, tower in (("clipag", model.visual), ("open_clip", peer)):
        fast = precision.in_precision(tower, torch.bfloat16)
        eager = _look(fast, views, "bfloat16")
        faster: nn.Module = torch.compile(fast, mode="reduce-overhead")  # type: ignore[assignment]
        optimized = _look(faster, views, "bfloat16")
        figures[f"cosine of {package}'s gradient"] = cosine(optimized(), eager())
        figures["towers, s"] |= meter.medians({package: eager, f"{package}, compiled": optimized})
    return figures


def _draw_and_learn(draw: Callable[[], Tensor]) -> None:
    draw().square().sum().backward()


def strokes(meter: Meter) -> Figures:
    """Time drawings of strokes, forward and backward."""
    figures: Figures = {}
    for count in (8, 16) if meter.quick else (256, 1024):
        runs: dict[str, Run] = {}
        for place in dict.fromkeys((str(meter.device), "cpu")):
            torch.manual_seed(0)
            runs[place] = partial(_draw_and_learn, stroke_scene(count, 1.0, place))
        figures[f"{count} strokes, s"] = meter.medians(runs, 10)
        figures[f"{count} strokes, peak MB"] = meter.peak_megabytes(runs[str(meter.device)])
    return figures


def command(meter: Meter) -> Figures:
    """Time `clipag generate` from the prompt to the PNG, as a process, and what torch takes."""
    with tempfile.TemporaryDirectory() as folder:
        draw = ["-m", "clipag_plugins", "generate", "a red apple", "--device", str(meter.device)]
        figures = {
            "import torch, s": meter.once(lambda: _python("-c", "import torch")),
            "clipag generate, s": meter.once(lambda: _python(*draw, "--out", folder)),
        }
        if not meter.quick:
            again = meter.once(lambda: _python(*draw, "--out", folder, "--count", "8"))
            figures["clipag generate --count 8, s"] = again
        figures["pictures"] = len(list(Path(folder).glob("*.png")))
    return figures


def _python(*arguments: str) -> None:
    """Run Python.

    Raises:
        RuntimeError: it fails.
    """
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr[-2000:]}")


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two tensors, as flat vectors on the CPU in float64."""
    a, b = (x.detach().cpu().double().flatten() for x in (a, b))
    return F.cosine_similarity(a, b, dim=0).item()


def _guarded(compare: Callable[..., Figures], *arguments: Any) -> Figures:
    """Return the figures of one case, or what went wrong: other cases may do better."""
    try:
        return compare(*arguments)
    except Exception as error:
        return {"error": repr(error)[:1000]}


def _forget() -> None:
    """Free the memory of what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
