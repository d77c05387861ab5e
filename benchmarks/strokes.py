"""How long strokes take to render, forward and backward, and how much memory.

    python -m benchmarks.strokes [--threads 2]

The scenes are CLIPDraw's strokes at the start (256 and 1,024 open paths of 1 to 3 cubics with
diffvg's stroke_width 1, which is 2 pixels), and ten times as wide, as strokes may become, at
224 × 224 with 2 × 2 samples. Two other renderers run beside ours: a plain torch renderer that
computes the distance of every pixel to every stroke, with one sample per pixel; and diffvg on the
CPU, if `import diffvg` works.

Each scene runs in its own process, which gives its peak memory. The figures are wall time and
processor time, of which other work on the machine disturbs the second less; both are the best of
several runs.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipag_plugins.integrations.vector.renderer import compose_on, render_paths

from . import keep

SIDE = 224
WHITE = torch.ones(3)
SCENES = [("torch", 256, 1.0), ("torch", 1024, 1.0), ("torch", 256, 10.0), ("dense", 256, 1.0)]


def notebook_strokes(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return points (count, 10, 2), segments (count,) and colours (count, 4) as CLIPDraw starts."""
    steps = 0.1 * (torch.rand(count, 10, 2) - 0.5)
    steps[:, 0] = torch.rand(count, 2)
    return steps.cumsum(1) * SIDE, torch.randint(1, 4, (count,)), torch.rand(count, 4)


def ours(count: int, radius: float, device: str = "cpu") -> Callable[[], Tensor]:
    """Return a function that renders with our renderer."""
    points, segments, colours = (part.to(device) for part in notebook_strokes(count))
    white = WHITE.to(device)
    points.requires_grad_()
    colours.requires_grad_()
    widths = torch.full((1, count), 2 * radius, device=device, requires_grad=True)

    def draw() -> Tensor:
        image = render_paths(
            points[None],
            (SIDE, SIDE),
            strokes=colours[None],
            widths=widths,
            segments=segments[None],
        )
        return compose_on(image, white)

    return draw


def dense(count: int, radius: float) -> Callable[[], Tensor]:
    """Return a function that computes the distance of every pixel to every stroke."""
    points, segments, colours = notebook_strokes(count)
    points.requires_grad_()
    centres = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).flip(1) + 0.5
    t = torch.linspace(0, 1, 9)[:, None, None]

    def stroke(image: Tensor, points: Tensor, colour: Tensor) -> Tensor:
        a, b, c, d = points[:-1:3], points[1::3], points[2::3], points[3::3]
        s = 1 - t
        curve = s**3 * a + 3 * s * s * t * b + 3 * s * t * t * c + t**3 * d
        distance = torch.cdist(centres, curve.flatten(0, 1)).amin(1, keepdim=True)
        alpha = (radius - distance + 0.5).clamp(0, 1) * colour[3]
        return image * (1 - alpha) + alpha * colour[:3]

    def draw() -> Tensor:
        image = WHITE.expand(SIDE * SIDE, 3)
        for path, number, colour in zip(points, segments.tolist(), colours, strict=True):
            image = checkpoint(stroke, image, path[: 3 * number + 1], colour, use_reentrant=False)
        return image

    return draw


def diffvg(count: int, radius: float) -> Callable[[], Tensor]:
    """Return a function that renders with diffvg on the CPU."""
    import pydiffvg

    pydiffvg.set_use_gpu(False)
    pydiffvg.set_print_timing(False)
    shapes: list[Any] = []
    groups: list[Any] = []
    for path, number, colour in zip(*notebook_strokes(count), strict=True):
        shapes.append(
            pydiffvg.Path(
                num_control_points=torch.full((int(number),), 2, dtype=torch.int32),
                points=path[: 3 * int(number) + 1].clone().requires_grad_(),
                stroke_width=torch.tensor(radius, requires_grad=True),
                is_closed=False,
            )
        )
        groups.append(
            pydiffvg.ShapeGroup(
                shape_ids=torch.tensor([len(groups)]),
                fill_color=None,
                stroke_color=colour.clone().requires_grad_(),
            )
        )

    def draw() -> Tensor:
        scene = pydiffvg.RenderFunction.serialize_scene(SIDE, SIDE, shapes, groups)
        image: Tensor = pydiffvg.RenderFunction.apply(SIDE, SIDE, 2, 2, 0, None, *scene)
        return image[:, :, 3:] * image[:, :, :3] + 1 - image[:, :, 3:]

    return draw


def measure(renderer: str, count: int, radius: float) -> dict[str, float]:
    """Render forward and backward; return the best times and this process's peak memory."""
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    draw = {"torch": ours, "dense": dense, "diffvg": diffvg}[renderer](count, radius)
    clock, processor = [], []
    for _ in range(20 if renderer == "torch" else 1):
        times = time.perf_counter(), time.process_time()
        draw().square().sum().backward()
        clock.append(time.perf_counter() - times[0])
        processor.append(time.process_time() - times[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(min(clock), 3),
        "processor seconds": round(min(processor), 3),
        "peak memory, MB": peak // 1024,
        "of which rendering, MB": (peak - before) // 1024,
    }


def main() -> None:
    """Measure every scene in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scene", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.scene:
        renderer, count, radius = options.scene
        print(json.dumps(measure(renderer, int(count), float(radius))))
        return
    scenes = list(SCENES)
    figures: dict[str, object] = {"threads": options.threads}
    if importlib.util.find_spec("diffvg"):
        scenes += [("diffvg", 256, 1.0), ("diffvg", 1024, 1.0)]
    else:
        figures["diffvg"] = "not installed"
    for renderer, count, radius in scenes:
        command = [sys.executable, "-m", "benchmarks.strokes", "--threads", str(options.threads)]
        command += ["--scene", renderer, str(count), str(radius)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        name = f"{renderer}, {count} strokes, {2 * radius:g} pixels wide"
        figures[name] = json.loads(printed)
    keep("strokes", figures)


if __name__ == "__main__":
    main()
