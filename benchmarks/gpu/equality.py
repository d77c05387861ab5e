"""Whether a GPU draws what the CPU draws: pictures, gradients, renderer, canvases, precisions."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import cli, precision
from clipag_plugins.arguments import RunOptions
from clipag_plugins.ascent import Ascent
from clipag_plugins.base import ClipagModel, normalize
from clipag_plugins.guide import Guide
from clipag_plugins.hub import load_model
from clipag_plugins.integrations import clipdraw, clipstyler, vqgan
from clipag_plugins.integrations.vector.renderer import render_paths
from clipag_plugins.pictures import from_pil, read_picture
from clipag_plugins.sampler import sample, settings_for
from clipag_plugins.targets import Target, text_target
from clipag_plugins.views import Views

from .. import ROOT
from .meter import Meter
from .speed import Figures, cosine, towers

PROMPT = "a red apple"
PHOTO = ROOT / "examples" / "cat-face.png"
# Similarities to the prompt may differ by this: pictures of a few steps that round differently.
SIMILARITY_TOLERANCE = 0.02
RENDERER_TOLERANCE = 1e-4
COMMANDS = {
    "generate": ["generate", PROMPT, "--tries", "1"],
    "draw": ["draw", PROMPT, "--strokes", "16"],
    "vqgan": ["vqgan", PROMPT, "--views", "4"],
    "style": ["style", str(PHOTO), PROMPT, "--patches", "4"],
}


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 in float32: by default cuDNN's convolutions round it to TF32."""
    convolutions = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions


def pictures(meter: Meter) -> Figures:
    """Draw one picture with each command on the CPU and on the device, and compare them."""
    judge = load_model()
    figures: Figures = {"tolerance of similarity": SIMILARITY_TOLERANCE}
    for name, arguments in COMMANDS.items():
        try:
            steps, size = ("1", "48") if meter.quick else ("3", "96")
            sized = [*arguments, "--seed", "0", "--steps", steps, "--size", size]
            figures[name] = _compare_pictures(judge, sized, meter)
        except Exception as error:
            figures[name] = {"error": repr(error)[:1000]}
    return figures


def _compare_pictures(judge: ClipagModel, arguments: list[str], meter: Meter) -> Figures:
    float32 = [*arguments, "--precision", "float32"]
    seconds: Figures = {}
    expected, seconds["CPU"] = _drawn(float32, "cpu", meter)
    with exact_float32():
        drawn, seconds["float32"] = _drawn(float32, str(meter.device), meter)
    default, seconds["auto"] = _drawn(arguments, str(meter.device), meter)
    similarity = {
        name: _similarity(judge, picture)
        for name, picture in (("CPU", expected), ("float32", drawn), ("auto", default))
    }
    difference = (drawn - expected).abs()
    return {
        "similarity": similarity,
        "within tolerance": all(
            abs(value - similarity["CPU"]) <= SIMILARITY_TOLERANCE for value in similarity.values()
        ),
        "mean difference, of 255": difference.mean().item() * 255,
        "largest difference, of 255": difference.max().item() * 255,
        "mean difference with auto, of 255": (default - expected).abs().mean().item() * 255,
        "seconds": seconds,
    }


def _drawn(arguments: list[str], device: str, meter: Meter) -> tuple[Tensor, float]:
    """Run a command in this process; return its picture (3, H, W) in [0, 1], and the seconds.

    Raises:
        RuntimeError: the command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        ending = ".svg" if arguments[0] == "draw" else ".png"
        out, errors = Path(folder) / f"picture{ending}", io.StringIO()
        codes = []

        def run() -> None:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
                codes.append(cli.main([*arguments, "--device", device, "--out", str(out)]))

        seconds = meter.once(run)
        if codes != [0]:
            raise RuntimeError(f"{arguments} on {device}: {errors.getvalue()[-1000:]}")
        picture = read_picture(out.with_suffix(".png"))
        return from_pil(picture, picture.size), seconds


def _similarity(judge: ClipagModel, picture: Tensor) -> float:
    """Return the similarity of a picture (3, H, W) to the prompt."""
    guide = Guide(judge, [[text_target(judge, PROMPT)]], options=RunOptions("float32"))
    return -guide.loss(picture[None]).item()


def gradients(meter: Meter) -> Figures:
    """Compare the guide's gradient with the CPU's in float32, in each precision."""
    count = 2 if meter.quick else 16
    large, _ = towers("ViT-S-32-alt" if meter.quick else "ViT-B-32", meter.device)
    figures: Figures = {}
    for name, model in (("clipag-mini", load_model()), ("vision transformer", deepcopy(large))):
        expected = _gradient(model.to("cpu"), count, "float32", "cpu")
        model.to(meter.device)
        place = str(meter.device)
        figures[name] = {
            each: cosine(_gradient(model, count, each, place), expected)
            for each in precision.DTYPES
        }
        with exact_float32():
            gradient = _gradient(model, count, "float32", place)
        figures[name]["float32 without TF32"] = cosine(gradient, expected)
        figures[name]["relative error without TF32"] = (
            (gradient.cpu() - expected).norm() / expected.norm()
        ).item()
    return figures


def _gradient(model: ClipagModel, count: int, name: str, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 224, 224, generator=generator).to(device).requires_grad_(True)
    goal = torch.randn(model.visual.output_dim, generator=generator).to(device)
    views = Views(count // 2, count - count // 2)
    guide = Guide(
        model, [[Target(F.normalize(goal, dim=0))]], views, seeds=[0], options=RunOptions(name)
    )
    (gradient,) = torch.autograd.grad(guide.loss(picture).sum(), picture)
    return gradient


def renderer(meter: Meter) -> Figures:
    """Compare pictures and gradients of strokes and of fills with the CPU's."""
    count = 8 if meter.quick else 64
    figures: Figures = {"tolerance": RENDERER_TOLERANCE}
    for kind in ("strokes", "fills"):
        for dtype in (torch.float32, torch.float64):
            expected, expected_gradient = _rendered(kind, count, dtype, "cpu")
            drawn, gradient = _rendered(kind, count, dtype, str(meter.device))
            difference = (drawn.cpu() - expected).abs()
            figures[f"{kind}, {str(dtype).removeprefix('torch.')}"] = {
                "largest difference": difference.max().item(),
                "share of values beyond the tolerance": (
                    (difference > RENDERER_TOLERANCE).float().mean().item()
                ),
                "cosine of the gradient": cosine(gradient, expected_gradient),
            }
    return figures


def _rendered(kind: str, count: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Return a picture (1, 4, 112, 112) of random paths, and the gradient of their points."""
    generator = torch.Generator().manual_seed(0)
    moves = torch.rand(1, count, 10, 2, generator=generator, dtype=torch.float64) - 0.5
    corner = torch.rand(1, count, 1, 2, generator=generator, dtype=torch.float64)
    points = ((corner + 0.2 * moves.cumsum(2)) * 112).to(device, dtype).requires_grad_(True)
    colours = torch.rand(1, count, 4, generator=generator, dtype=torch.float64).to(device, dtype)
    widths = torch.full((1, count), 3.0, device=device, dtype=dtype)
    if kind == "strokes":
        picture = render_paths(points, (112, 112), strokes=colours, widths=widths)
    else:
        picture = render_paths(points, (112, 112), fills=colours)
    (gradient,) = torch.autograd.grad(picture.square().sum(), points)
    return picture.detach(), gradient


def canvases(meter: Meter) -> Figures:
    """Draw on every canvas in every precision: finite, and about as similar as in float32."""
    model = load_model(device=meter.device)
    steps, side = (1, 48) if meter.quick else (10, 96)
    photo = from_pil(read_picture(PHOTO), (side, side))
    network = vqgan.load_vqgan()
    latent = replace(vqgan.settings_for(network), views=vqgan.Cutouts(4))

    def pixels(canvas: str, options: RunOptions) -> Ascent:
        settings = settings_for(model, steps=steps, tries=1, canvas=canvas)
        return sample([PROMPT], model, settings, size=side, options=options)

    draws: dict[str, Callable[[RunOptions], Ascent]] = {
        "pixels": lambda options: pixels("pixels", options),
        "pyramid": lambda options: pixels("pyramid", options),
        "fft": lambda options: pixels("fft", options),
        "strokes": lambda options: clipdraw.draw(
            [PROMPT], model, steps=steps, size=side, drawing=clipdraw.Drawing(32), options=options
        ),
        "latent": lambda options: vqgan.draw(
            PROMPT,
            model,
            network,
            steps=steps,
            size=(side, side),
            settings=latent,
            options=options,
        ),
        "style network": lambda options: clipstyler.style(
            photo,
            "fire",
            model,
            losses=clipstyler.Losses(patches=4),
            network=True,
            steps=steps,
            options=options,
        ),
    }
    return {name: _in_precisions(draw, model) for name, draw in draws.items()}


def _in_precisions(draw: Callable[[RunOptions], Ascent], model: ClipagModel) -> Figures:
    figures: Figures = {}
    judge = Guide(model, [[text_target(model, PROMPT)]], options=RunOptions("float32"))
    for name in precision.DTYPES:
        try:
            ascent = draw(RunOptions(name, progress=False))
            finite = bool(ascent.images.isfinite().all() and ascent.losses.isfinite().all())
            with torch.no_grad():
                similarity = -judge.loss(ascent.images).item()
            figures[name] = {
                "finite": finite, "loss": ascent.losses.mean().item(), "similarity": similarity,
            }  # fmt: skip
        except Exception as error:
            figures[name] = {"error": repr(error)[:1000]}
    return figures


def half(meter: Meter) -> Figures:
    """Load models as OpenAI's scripts do; compare their half precision with the CPU's float32."""
    name = "ViT-S-32-alt" if meter.quick else "ViT-B-32"
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        large, _ = towers(name, meter.device)
        path = Path(folder) / "model.pt"
        torch.save({key: value.cpu() for key, value in large.state_dict().items()}, path)
        for each in ("clipag-mini", path):
            try:
                figures[Path(each).stem] = _half(each, meter)
            except Exception as error:
                figures[Path(each).stem] = {"error": repr(error)[:1000]}
    return figures


@torch.no_grad()
def _half(name: str | Path, meter: Meter) -> Figures:
    model, preprocess = clip.load(name, device=meter.device)
    expected = load_model(name)
    with Image.open(PHOTO) as picture:
        image = preprocess(picture.convert("RGB"))[None]
    tokens = clip.tokenize([PROMPT, "a cat", "a bus"])
    z = model.encode_image(image.to(meter.device)), model.encode_text(tokens.to(meter.device))
    z32 = expected.encode_image(image), expected.encode_text(tokens)
    logits, _ = model(image.to(meter.device), tokens.to(meter.device))
    logits32, _ = expected(image, tokens)
    return {
        "types of the weights": sorted({str(p.dtype) for p in model.parameters()}),
        "types of the embeddings": [str(each.dtype) for each in z],
        "cosines of the embeddings": [cosine(a, b) for a, b in zip(z, z32, strict=True)],
        "largest difference of the logits": (logits.cpu().float() - logits32).abs().max().item(),
        "normalised input": str(normalize(image).dtype),
    }
