"""CLIPDraw: strokes as a canvas.

Frans et al., "CLIPDraw: Exploring Text-to-Drawing Synthesis through Language-Image Encoders",
NeurIPS 2022; the figures are those of the authors' notebook. Its images go to CLIP without CLIP's
normalisation, "but really you should", as it says itself: a guide does.

Lengths are in pixels of the notebook's canvas, 224 a side, whatever the size of the picture. Stroke
widths are full widths as in SVG. diffvg counts them by half, so that here all figures about widths
are twice the notebook's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count as count_from
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageColor
from torch import Tensor, nn

from clipag_plugins.arguments import RunOptions, check_extent, seeds_of
from clipag_plugins.ascent import Ascent, Callback, ascend
from clipag_plugins.base import ClipagModel, resample
from clipag_plugins.canvas import Canvas
from clipag_plugins.errors import ClipagError
from clipag_plugins.guide import Guide
from clipag_plugins.integrations.vector import paths
from clipag_plugins.integrations.vector.renderer import over, render_paths
from clipag_plugins.pictures import from_pil, read_picture, to_pil
from clipag_plugins.targets import prompt_targets, text_target
from clipag_plugins.trajectory import FRAMES
from clipag_plugins.views import one_view, same_for_all_images

SIDE = 224
STEPS = 250
STROKES = 256
MOST_STROKES = 16384
SEGMENTS = 3  # at most, of a stroke
REACH = 0.1  # how far apart a path's neighbouring points may start, as a share of the side
WIDTH = (2.0, 100.0)
COVER = 2.0  # how often strokes that start from a picture would cover the canvas
POINT_RATES = ((0.0, 1.0), (0.5, 0.4), (0.75, 0.1))  # from this share of the steps on
WIDTH_RATE = 0.2
COLOUR_RATE = 0.01
NEGATIVE_WEIGHT = -0.3
SHAPES = ("stroke", "fill", "pixel")


@dataclass(frozen=True)
class Perspectives:
    """The notebook's views: the picture seen aslant on white, and a large crop of that.

    As torchvision's `RandomPerspective(0.5, p=1, fill=1)` and `RandomResizedCrop(scale=(0.7,
    0.9))` do, through kornia.

    Args:
        count: views of one image.
    """

    count: int = 4

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return views (B, count, 3, size, size) of images (B, 3, H, W), and weights (count,).

        Random numbers are torch's global ones and the same for every image of the batch.
        """
        # Shrunk first so that a crop is about `size` pixels wide, and needs no filter.
        source = resample(images, min(*images.shape[-2:], round(size / 0.8**0.5)))
        # What kornia brings in from outside is 0, so that white has to be.
        dark = (1 - source)[:, None].expand(-1, self.count, -1, -1, -1)
        views = 1 - same_for_all_images(_perspective_and_crop(size), dark)
        return views, images.new_full((self.count,), 1 / self.count)


@cache
def _perspective_and_crop(size: int) -> list[Any]:
    import kornia.augmentation as K  # here, since it takes a second to import

    crop = K.RandomResizedCrop((size, size), scale=(0.7, 0.9), cropping_mode="resample")
    return [K.RandomPerspective(0.5, p=1.0), crop]


class Strokes(NamedTuple):
    """B drawings of P paths each, in paint order.

    `points` (B, P, 3S + 1, 2), or (B, P, 3S, 2) for closed paths, hold ends and control points of
    cubic segments, `segments` (B, P) how many of the S segments an open path has, `widths` (B, P)
    full widths, and `colours` (B, P, 4) RGBA in [0, 1].
    """

    points: Tensor
    segments: Tensor
    widths: Tensor
    colours: Tensor


class StrokeCanvas(Canvas):
    """Drawings of strokes or of filled shapes on white.

    Args:
        start: the drawings to start from.
        shapes: "stroke"; "fill", closed paths that are filled; or "pixel", the same with only
            their colours to be changed.
        size: side of the rendered picture in pixels.
        width: least and most width of strokes.
        palette: (K, 3), the colours that may be used, in [0, 1]; None for all.
        steps: the steps over which the points come to rest.
    """

    def __init__(
        self,
        start: Strokes,
        shapes: str = "stroke",
        size: int = SIDE,
        width: tuple[float, float] = WIDTH,
        palette: Tensor | None = None,
        steps: int = STEPS,
    ):
        super().__init__()
        self.points = nn.Parameter(start.points.clone(), requires_grad=shapes != "pixel")
        self.widths = nn.Parameter(start.widths.clone(), requires_grad=shapes == "stroke")
        self.colours = nn.Parameter(start.colours.clone())
        # Not learned, so not among what is kept and restored.
        self.register_buffer("segments", start.segments, persistent=False)
        self.register_buffer("palette", palette, persistent=False)
        self.segments: Tensor
        self.palette: Tensor | None
        self.shapes = shapes
        self.size = size
        self.width = width
        self.steps = steps

    def render(self) -> Tensor:
        """Return the drawings, (B, 3, size, size)."""
        return self.render_first(self.points.shape[1])

    def render_first(self, count: int) -> Tensor:
        """Return the drawings (B, 3, size, size) when their first `count` paths are painted."""
        zoom = self.size / SIDE
        points = self.points[:, :count] * zoom
        size, inks = (self.size, self.size), self.inks()[:, :count]
        if self.shapes == "stroke":
            widths, segments = self.widths[:, :count] * zoom, self.segments[:, :count]
            image = render_paths(points, size, strokes=inks, widths=widths, segments=segments)
        else:
            image = render_paths(points, size, fills=inks, is_closed=True)
        return over(image, image.new_ones(3))

    def inks(self) -> Tensor:
        """Return the colours that are painted, (B, P, 4): with a palette, the nearest in it.

        The gradient passes straight through that choice: a colour moves on unseen until another
        of the palette is nearer.
        """
        if self.palette is None:
            return self.colours
        rgb, alpha = self.colours[..., :3], self.colours[..., 3:]
        with torch.no_grad():
            nearest = self.palette[torch.cdist(rgb, self.palette[None]).argmin(-1)]
        return torch.cat([nearest + (rgb - rgb.detach()), alpha], dim=-1)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the notebook's Adam: rates of their own for points, widths and colours."""
        optimizer = torch.optim.Adam(
            [
                {"params": [self.points], "lr": POINT_RATES[0][1]},
                {"params": [self.widths], "lr": WIDTH_RATE},
                {"params": [self.colours], "lr": COLOUR_RATE},
            ]
        )
        taken = count_from()

        def anneal(*_: object) -> None:
            step = next(taken)
            rates = [rate for share, rate in POINT_RATES if step >= int(share * self.steps)]
            optimizer.param_groups[0]["lr"] = rates[-1]

        optimizer.register_step_pre_hook(anneal)
        return optimizer

    @torch.no_grad()
    def constrain(self) -> None:
        """Clamp the widths to their range and the colours to [0, 1]."""
        self.widths.clamp_(*self.width)
        self.colours.clamp_(0, 1)

    def state(self) -> dict[str, Tensor]:
        """Return points, widths and colours."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def groups(self, index: int) -> list[paths.Group]:
        """Return one drawing's paths in paint order, in pixels of the rendered picture."""
        zoom = self.size / SIDE
        inks, is_stroke = self.inks()[index], self.shapes == "stroke"
        groups = []
        for number, points in enumerate(self.points[index] * zoom):
            segments = int(self.segments[index, number])
            cubics = torch.full((segments,), 2)
            ink, width = inks[number], self.widths[index, number] * zoom
            if is_stroke:
                path = paths.Path(points[: 3 * segments + 1], cubics, False, width)
                groups.append(paths.Group([path], stroke=ink))
            else:
                groups.append(paths.Group([paths.Path(points, cubics, True)], fill=ink))
        return groups


def starting_strokes(
    seed: int,
    strokes: int = STROKES,
    *,
    init: str | Path = "random",
    shapes: str = "stroke",
    size: int = SIDE,
    width: tuple[float, float] = WIDTH,
    palette: Tensor | None = None,
) -> Strokes:
    """Return one drawing (B = 1) to start from.

    Random strokes are the notebook's: random walks of 1 to 3 segments in random colours, of the
    least width. From a picture they take the mean colours of where they lie, opaque, and are so
    wide that together they cover the canvas.

    Args:
        seed: of all that is random.
        strokes: number of paths; of pixels, the largest square number up to it.
        init: "random" or a picture.
        shapes: as of `StrokeCanvas`.
        size: side of the rendered picture, to whose pixels "pixel" shapes are aligned.
        width: least and most width.
        palette: (K, 3), from which random colours are drawn; None for all.

    Raises:
        ClipagError: the picture cannot be read.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = math.isqrt(strokes)
    if shapes == "pixel":
        points = _squares(grid, size)
        segments = torch.full((len(points),), 4)
    else:
        # A closed path ends where it starts, so that it has a point less.
        number = 3 * SEGMENTS + (shapes == "stroke")
        start = torch.rand(strokes, 1, 2, generator=generator)
        moves = REACH * (torch.rand(strokes, number - 1, 2, generator=generator) - 0.5)
        points = torch.cat([start, start + moves.cumsum(1)], dim=1) * SIDE
        segments = torch.randint(1, SEGMENTS + 1, (strokes,), generator=generator)
        if shapes == "fill":
            segments = torch.full_like(segments, SEGMENTS)
    colours = torch.rand(len(points), 4, generator=generator)
    widths = torch.full((len(points),), width[0])
    if palette is not None:
        chosen = torch.randint(len(palette), (len(points),), generator=generator)
        colours[:, :3] = palette.cpu()[chosen]
    if init != "random":
        cells = from_pil(read_picture(Path(init)), (grid, grid)).permute(1, 2, 0)
        present = torch.arange(points.shape[1]) < 3 * segments[:, None] + (shapes == "stroke")
        centres = (points * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        column, row = (centres / SIDE * grid).long().clamp(0, grid - 1).T
        colours = torch.cat([cells[row, column], torch.ones(len(points), 1)], dim=1)
        steps = (points[:, 1:] - points[:, :-1]).norm(dim=-1) * present[:, 1:]
        widths = torch.full_like(widths, COVER * SIDE**2 / float(steps.sum())).clamp(*width)
    return Strokes(points[None], segments[None], widths[None], colours[None])


def _squares(count: int, size: int) -> Tensor:
    """Return count² squares (count², 12, 2) that fill the canvas, as closed cubic paths."""
    # On whole pixels of the picture: between two half-covered ones a seam would show.
    edges = (torch.arange(count + 1) * size / count).round() * SIDE / size
    top, left = torch.meshgrid(edges[:-1], edges[:-1], indexing="ij")
    bottom, right = torch.meshgrid(edges[1:], edges[1:], indexing="ij")
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=-1)
    corners = corners.view(-1, 4, 1, 2)
    along = torch.tensor([0, 1 / 3, 2 / 3]).view(3, 1)
    return torch.lerp(corners, corners.roll(-1, 1), along).flatten(1, 2)


def read_palette(colours: Sequence[str]) -> Tensor:
    """Return colours as (K, 3) in [0, 1]: "#e63946", with or without #, or names as CSS has.

    Raises:
        ClipagError: a colour is none.
    """
    read = []
    for colour in colours:
        for spelled in (colour, f"#{colour}"):
            try:
                read.append(ImageColor.getcolor(spelled, "RGB"))
                break
            except ValueError:
                continue
        else:
            raise ClipagError(
                f"The palette's colour {colour!r} is none: write it as e63946, or by its name."
            )
    return torch.tensor(read) / 255


def draw(
    prompts: Sequence[str],
    model: ClipagModel,
    *,
    strokes: int = STROKES,
    steps: int = STEPS,
    seed: int | Sequence[int] = 0,
    size: int = SIDE,
    negative: Sequence[str] = (),
    augment: bool = True,
    init: str | Path = "random",
    shapes: str = "stroke",
    width: tuple[float, float] = WIDTH,
    palette: Sequence[str] = (),
    prefix: str = "",
    truncate: bool = False,
    precision: str = "auto",
    max_views: int = 64,
    compile: bool = False,
    callback: Callback | None = None,
    progress: bool = True,
) -> tuple[StrokeCanvas, Ascent]:
    """Draw prompts with strokes, as one batch.

    Args:
        prompts: what to draw.
        model: the CLIP that guides.
        strokes: paths of each drawing, 1 to 16,384.
        steps: updates.
        seed: the same seed gives the same drawing on the same machine. Of several seeds each
            draws every prompt; the first prompt's drawings come first.
        size: side of the picture in pixels, 16 to 2048.
        negative: what it should not look like, each with a weight of 0.3.
        augment: look at four `Perspectives`, not at the picture itself.
        init: "random", or a picture whose colours the strokes start with.
        shapes: "stroke", "fill" or "pixel": see `StrokeCanvas`.
        width: least and most width of strokes, in pixels of a canvas of 224.
        palette: the colours that may be used, as `read_palette` takes them; none for all.
        prefix: put before every prompt.
        truncate: cut prompts of more than 77 tokens instead of refusing them.
        precision, max_views, compile: see `Guide`.
        callback: called by the loop as `ascend` says.
        progress: show a progress bar.

    Returns:
        The canvas, which holds the best iterate of each drawing, and the ascent. Ctrl-C ends it
        with the best so far.

    Raises:
        ClipagError: an argument is out of its range, or a file cannot be read.
    """
    check_extent(steps, size)
    if not 1 <= strokes <= MOST_STROKES:
        raise ClipagError(f"strokes is {strokes}: choose from 1 to {MOST_STROKES}.")
    if shapes not in SHAPES:
        raise ClipagError(f"shapes is {shapes!r}: choose from {', '.join(SHAPES)}.")
    if not 0 < width[0] <= width[1] < math.inf:
        raise ClipagError(
            f"width is {width[0]:g} to {width[1]:g}: give the least, above 0, and then the most."
        )
    seeds = seeds_of(seed)
    targets = prompt_targets(
        model,
        [f"{prefix} {prompt}".strip() if prompt.strip() else prompt for prompt in prompts],
        truncate,
    )
    against = [text_target(model, text, NEGATIVE_WEIGHT, truncate) for text in negative]
    inks = read_palette(palette).to(model.device) if palette else None
    starts = [
        starting_strokes(
            number, strokes, init=init, shapes=shapes, size=size, width=width, palette=inks
        )
        for number in seeds
    ]
    start = Strokes(
        *(torch.cat(parts * len(targets)).to(model.device) for parts in zip(*starts, strict=True))
    )
    canvas = StrokeCanvas(start, shapes, size, width, inks, steps)
    guide = Guide(
        model,
        [[target, *against] for target in targets for _ in seeds],
        Perspectives() if augment else one_view,
        seeds=seeds * len(targets),
        options=RunOptions(precision, max_views, compile),
    )
    ascent = ascend(canvas, guide, steps, callback=callback, progress=progress)
    canvas.load_state_dict(ascent.state)
    return canvas, ascent


@torch.no_grad()
def stroke_by_stroke(canvas: StrokeCanvas) -> list[list[Image.Image]]:
    """Return some forty frames of each drawing, as its paths are painted one after another."""
    total = canvas.points.shape[1]
    counts = [*range(1, total, -(-total // FRAMES)), total]
    moments = ([to_pil(image) for image in canvas.render_first(count)] for count in counts)
    return [list(frames) for frames in zip(*moments, strict=True)]
