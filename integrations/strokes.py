"""The strokes of CLIPDraw: what a drawing is made of, and what it starts from.

Lengths and widths are as in `clipdraw`: full widths, in pixels of a canvas of 224.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import ImageColor
from torch import Tensor

from clipag_plugins.defaults import SHAPES, SIDE, STROKE_WIDTH, STROKES
from clipag_plugins.errors import ClipagError
from clipag_plugins.pictures import from_pil, read_picture

CANVAS_SIDE = 224
MOST_STROKES = 16384
MOST_SEGMENTS = 3  # of a stroke
MOVE_RANGE = 0.1  # of a random move from one point to the next, as a share of the side
COVER = 2.0  # strokes that start from a picture have this many times the area of the canvas


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
