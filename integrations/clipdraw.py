"""CLIPDraw: strokes as a canvas.

Frans et al., "CLIPDraw: Exploring Text-to-Drawing Synthesis through Language-Image Encoders",
NeurIPS 2022. The constants are those of the authors' notebook. The notebook leaves out CLIP's
normalisation of images but recommends it; the guide normalises.

Lengths are in pixels of the notebook's canvas, 224 on each side, whatever the size of the picture.
Stroke widths are full widths, as in SVG. diffvg counts half widths, so all widths in this module
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
from clipag_plugins.defaults import SHAPES, SIDE, STROKE_STEPS, STROKE_WIDTH, STROKES
from clipag_plugins.errors import ClipagError
from clipag_plugins.guide import Guide
from clipag_plugins.integrations.vector import paths
from clipag_plugins.integrations.vector.renderer import compose_on, render_paths
from clipag_plugins.pictures import from_pil, read_picture, to_pil
from clipag_plugins.targets import prompt_targets, text_target
from clipag_plugins.trajectory import FRAMES
from clipag_plugins.views import one_view, same_for_all_images

CANVAS_SIDE = 224
MOST_STROKES = 16384
MOST_SEGMENTS = 3  # of a stroke
MOVE_RANGE = 0.1  # of a random move from one point to the next, as a share of the side
COVER = 2.0  # strokes that start from a picture have this many times the area of the canvas
POINT_RATES = ((0.0, 1.0), (0.5, 0.4), (0.75, 0.1))  # (share of the steps done, learning rate)
WIDTH_RATE = 0.2
COLOUR_RATE = 0.01
NEGATIVE_WEIGHT = -0.3


@dataclass(frozen=True)
class Perspectives:
    """The notebook's views: the picture in a random perspective on white, and a large crop of that.

    They have the distribution of torchvision's `RandomPerspective(0.5, p=1, fill=1)`, followed by
    `RandomResizedCrop(scale=(0.7, 0.9))`, but kornia computes them.

    Args:
        count: views of one image.
    """

    count: int = 4

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return views (B, count, 3, size, size) of images (B, 3, H, W), and weights (count,).

        Random numbers come from torch's global generator and are the same for every image of the
        batch.
        """
        # Shrunk first so that a crop is about `size` pixels wide, and needs no filter.
        source = resample(images, min(*images.shape[-2:], round(size / 0.8**0.5)))
        # kornia fills the outside with 0. In the inverted image, 0 is white.
        inverted = (1 - source)[:, None].expand(-1, self.count, -1, -1, -1)
        views = 1 - same_for_all_images(_perspective_and_crop(size), inverted)
        return views, images.new_full((self.count,), 1 / self.count)


@cache
def _perspective_and_crop(size: int) -> list[Any]:
    import kornia.augmentation as K  # imported late, since it takes a second

    crop = K.RandomResizedCrop((size, size), scale=(0.7, 0.9), cropping_mode="resample")
    return [K.RandomPerspective(0.5, p=1.0), crop]


def read_palette(colours: Sequence[str]) -> Tensor:
    """Return colours as (K, 3) in [0, 1].

    Args:
        colours: hexadecimal, as "#e63946" or "e63946", or CSS names.

    Raises:
        ClipagError: one of them is not a colour.
    """
    rgb = []
    for colour in colours:
        for spelling in (colour, f"#{colour}"):
            try:
                rgb.append(ImageColor.getcolor(spelling, "RGB"))
                break
            except ValueError:
                continue
        else:
            raise ClipagError(
                f"`palette` names {colour!r}, which is not a colour: write a colour as e63946, or "
                "by its name."
            )
    return torch.tensor(rgb) / 255


@dataclass(frozen=True)
class Drawing:
    """What a drawing is made of.

    Args:
        strokes: number of paths, 1 to 16,384. The squares of "pixel" fill a grid, so their number
            is the largest square number up to this.
        shapes: "stroke"; "fill" for closed paths that are filled; or "pixel" for a grid of
            squares of which only the colours change.
        width: smallest and largest width of strokes, in pixels of a canvas of 224.
        palette: the colours that may be used, as `read_palette` takes them; empty for all.
        init: "random", or the path of a picture that gives the strokes their first colours.

    Raises:
        ClipagError: a value is out of its range.
    """

    strokes: int = STROKES
    shapes: str = "stroke"
    width: tuple[float, float] = STROKE_WIDTH
    palette: Sequence[str] = ()
    init: str | Path = "random"

    def __post_init__(self) -> None:
        if not 1 <= self.strokes <= MOST_STROKES:
            raise ClipagError(f"`strokes` is {self.strokes}: choose from 1 to {MOST_STROKES}.")
        if self.shapes not in SHAPES:
            raise ClipagError(f"`shapes` is {self.shapes!r}: choose from {', '.join(SHAPES)}.")
        smallest, largest = self.width
        if not 0 < smallest <= largest < math.inf:
            raise ClipagError(
                f"`width` is {smallest:g} to {largest:g}: give the smallest width, above 0, and "
                "then the largest."
            )
        read_palette(self.palette)

    def palette_colours(self) -> Tensor | None:
        """Return the colours of the palette, (K, 3) in [0, 1]; None if all may be used."""
        return read_palette(self.palette) if self.palette else None


class Strokes(NamedTuple):
    """B drawings of P paths each, in paint order.

    Attributes:
        points: the ends and control points of S cubic segments, (B, P, 3S + 1, 2), or
            (B, P, 3S, 2) for closed paths.
        segments: how many of the S segments an open path has, (B, P).
        widths: full widths, (B, P).
        colours: RGBA in [0, 1], (B, P, 4).
    """

    points: Tensor
    segments: Tensor
    widths: Tensor
    colours: Tensor


class StrokeCanvas(Canvas):
    """Drawings of strokes, or of filled shapes, on white.

    Args:
        start: the strokes to start from.
        drawing: the shapes, the range of widths and the palette; the rest is in `start`.
        size: side of the rendered picture in pixels.
        steps: length of the ascent. The learning rate of the points falls over so many steps.
    """

    def __init__(
        self,
        start: Strokes,
        drawing: Drawing = Drawing(),
        size: int = SIDE,
        steps: int = STROKE_STEPS,
    ):
        super().__init__()
        shapes = drawing.shapes
        self.points = nn.Parameter(start.points.clone(), requires_grad=shapes != "pixel")
        self.widths = nn.Parameter(start.widths.clone(), requires_grad=shapes == "stroke")
        self.colours = nn.Parameter(start.colours.clone())
        # Not learned, so not part of the state that `ascend` keeps.
        self.register_buffer("segments", start.segments, persistent=False)
        palette = drawing.palette_colours()
        palette = None if palette is None else palette.to(start.colours.device)
        self.register_buffer("palette", palette, persistent=False)
        self.segments: Tensor
        self.palette: Tensor | None
        self.drawing = drawing
        self.size = size
        self.steps = steps

    def render(self) -> Tensor:
        """Return the drawings, (B, 3, size, size)."""
        return self.render_first(self.points.shape[1])

    def render_first(self, count: int) -> Tensor:
        """Return the drawings (B, 3, size, size) after their first `count` paths."""
        zoom = self.size / CANVAS_SIDE
        points = self.points[:, :count] * zoom
        size, colours = (self.size, self.size), self.painted_colours()[:, :count]
        if self.drawing.shapes == "stroke":
            widths, segments = self.widths[:, :count] * zoom, self.segments[:, :count]
            image = render_paths(points, size, strokes=colours, widths=widths, segments=segments)
        else:
            image = render_paths(points, size, fills=colours, is_closed=True)
        return compose_on(image, image.new_ones(3))

    def painted_colours(self) -> Tensor:
        """Return the colours that are painted, (B, P, 4): with a palette, the nearest in it.

        The gradient passes straight through that choice, so a colour can move until another colour
        of the palette is nearer.
        """
        if self.palette is None:
            return self.colours
        rgb, alpha = self.colours[..., :3], self.colours[..., 3:]
        with torch.no_grad():
            nearest = self.palette[torch.cdist(rgb, self.palette[None]).argmin(-1)]
        return torch.cat([nearest + (rgb - rgb.detach()), alpha], dim=-1)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the notebook's Adam, with separate rates for points, widths and colours."""
        optimizer = torch.optim.Adam(
            [
                {"params": [self.points], "lr": POINT_RATES[0][1]},
                {"params": [self.widths], "lr": WIDTH_RATE},
                {"params": [self.colours], "lr": COLOUR_RATE},
            ]
        )
        step_numbers = count_from()

        def anneal(*_: object) -> None:
            step = next(step_numbers)
            rates = [rate for share, rate in POINT_RATES if step >= int(share * self.steps)]
            optimizer.param_groups[0]["lr"] = rates[-1]

        optimizer.register_step_pre_hook(anneal)
        return optimizer

    @torch.no_grad()
    def constrain(self) -> None:
        """Clamp the widths to their range and the colours to [0, 1]."""
        self.widths.clamp_(*self.drawing.width)
        self.colours.clamp_(0, 1)

    def state(self) -> dict[str, Tensor]:
        """Return points, widths and colours."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def groups(self, index: int) -> list[paths.Group]:
        """Return one drawing's paths in paint order, in pixels of the rendered picture."""
        zoom = self.size / CANVAS_SIDE
        colours, is_stroke = self.painted_colours()[index], self.drawing.shapes == "stroke"
        groups = []
        for number, points in enumerate(self.points[index] * zoom):
            segments = int(self.segments[index, number])
            cubics = torch.full((segments,), 2)
            colour, width = colours[number], self.widths[index, number] * zoom
            if is_stroke:
                path = paths.Path(points[: 3 * segments + 1], cubics, False, width)
                groups.append(paths.Group([path], stroke=colour))
            else:
                groups.append(paths.Group([paths.Path(points, cubics, True)], fill=colour))
        return groups


def starting_strokes(seed: int, drawing: Drawing = Drawing(), size: int = SIDE) -> Strokes:
    """Return the strokes that one drawing (B = 1) starts from.

    Random strokes are the notebook's: random walks of 1 to 3 segments, in random colours and of the
    smallest width. If `drawing.init` is a picture, they are opaque, in the mean colours of the
    places where they lie, and so wide that together they cover the canvas.

    Args:
        seed: where all random numbers come from.
        drawing: what the drawing is made of.
        size: side of the rendered picture. The squares of "pixel" are aligned to its pixels.

    Raises:
        ClipagError: the picture cannot be read.
    """
    generator = torch.Generator().manual_seed(seed)
    if drawing.shapes == "pixel":
        points = _squares(math.isqrt(drawing.strokes), size)
        segments = torch.full((len(points),), 4)
    else:
        points, segments = _random_walks(drawing.strokes, drawing.shapes == "stroke", generator)
    colours = torch.rand(len(points), 4, generator=generator)
    widths = torch.full((len(points),), drawing.width[0])
    palette = drawing.palette_colours()
    if palette is not None:
        chosen = torch.randint(len(palette), (len(points),), generator=generator)
        colours[:, :3] = palette[chosen]
    if drawing.init != "random":
        colours, widths = _look_of_picture(points, segments, drawing)
    return Strokes(points[None], segments[None], widths[None], colours[None])


def _random_walks(count: int, is_open: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the points (count, 10, 2) of random paths and their numbers of segments (count,).

    Closed paths have 9 points, since the last segment ends at the first point.
    """
    length = 3 * MOST_SEGMENTS + is_open
    start = torch.rand(count, 1, 2, generator=generator)
    moves = MOVE_RANGE * (torch.rand(count, length - 1, 2, generator=generator) - 0.5)
    points = torch.cat([start, start + moves.cumsum(1)], dim=1) * CANVAS_SIDE
    segments = torch.randint(1, MOST_SEGMENTS + 1, (count,), generator=generator)
    return points, segments if is_open else torch.full_like(segments, MOST_SEGMENTS)


def _look_of_picture(points: Tensor, segments: Tensor, drawing: Drawing) -> tuple[Tensor, Tensor]:
    """Return the colours (P, 4) and widths (P,) of paths that start from a picture."""
    grid = math.isqrt(drawing.strokes)
    cells = from_pil(read_picture(Path(drawing.init)), (grid, grid)).permute(1, 2, 0)
    is_open = drawing.shapes == "stroke"
    is_used = torch.arange(points.shape[1]) < 3 * segments[:, None] + is_open
    centres = (points * is_used[..., None]).sum(1) / is_used.sum(1, keepdim=True)
    column, row = (centres / CANVAS_SIDE * grid).long().clamp(0, grid - 1).T
    colours = torch.cat([cells[row, column], torch.ones(len(points), 1)], dim=1)
    lengths = (points[:, 1:] - points[:, :-1]).norm(dim=-1) * is_used[:, 1:]
    width = COVER * CANVAS_SIDE**2 / float(lengths.sum())
    return colours, torch.full((len(points),), width).clamp(*drawing.width)


def _squares(count: int, size: int) -> Tensor:
    """Return count² squares (count², 12, 2) that fill the canvas, as closed cubic paths."""
    # Edges lie between pixels of the picture. Inside a pixel, two squares would leave a seam.
    edges = (torch.arange(count + 1) * size / count).round() * CANVAS_SIDE / size
    top, left = torch.meshgrid(edges[:-1], edges[:-1], indexing="ij")
    bottom, right = torch.meshgrid(edges[1:], edges[1:], indexing="ij")
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=-1)
    corners = corners.view(-1, 4, 1, 2)
    along = torch.tensor([0, 1 / 3, 2 / 3]).view(3, 1)
    return torch.lerp(corners, corners.roll(-1, 1), along).flatten(1, 2)


def draw(
    prompts: Sequence[str],
    model: ClipagModel,
    *,
    steps: int = STROKE_STEPS,
    seed: int | Sequence[int] = 0,
    size: int = SIDE,
    drawing: Drawing = Drawing(),
    negative: Sequence[str] = (),
    augment: bool = True,
    callback: Callback | None = None,
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Draw prompts with strokes, as one batch.

    Args:
        prompts: what to draw.
        model: the CLIP that guides.
        steps: number of updates.
        seed: the same seed gives the same drawing on the same machine. With several seeds every
            prompt is drawn once for each; the drawings of the first prompt come first.
        size: side of the picture in pixels, 16 to 2048.
        drawing: number and kind of strokes, their widths and colours, and the start.
        negative: what the drawing should not look like, each with a weight of −0.3.
        augment: guide by four `Perspectives` of the picture instead of the picture itself.
        callback: as for `ascend`.
        options: precision, memory, compilation and progress bar.

    Returns:
        The ascent. Its canvas, a `StrokeCanvas`, holds the best iterate of each drawing. Ctrl-C
        ends the ascent and keeps the best so far.

    Raises:
        ClipagError: an argument is out of its range, or a file cannot be read.
    """
    check_extent(steps, size)
    seeds = seeds_of(seed)
    targets = prompt_targets(model, prompts, options.truncate)
    negative_targets = [
        text_target(model, text, NEGATIVE_WEIGHT, options.truncate) for text in negative
    ]
    starts = [starting_strokes(number, drawing, size) for number in seeds]
    start = Strokes(
        *(torch.cat(parts * len(targets)).to(model.device) for parts in zip(*starts, strict=True))
    )
    canvas = StrokeCanvas(start, drawing, size, steps)
    guide = Guide(
        model,
        [[target, *negative_targets] for target in targets for _ in seeds],
        Perspectives() if augment else one_view,
        seeds=seeds * len(targets),
        options=options,
    )
    ascent = ascend(canvas, guide, steps, callback=callback, progress=options.progress)
    canvas.load_state_dict(ascent.state)
    return ascent


@torch.no_grad()
def stroke_by_stroke(canvas: StrokeCanvas) -> list[list[Image.Image]]:
    """Return about forty frames of each drawing, in which its paths appear one after another."""
    total = canvas.points.shape[1]
    counts = [*range(1, total, -(-total // FRAMES)), total]
    batches = ([to_pil(image) for image in canvas.render_first(count)] for count in counts)
    return [list(frames) for frames in zip(*batches, strict=True)]
