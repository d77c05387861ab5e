"""The strokes of CLIPDraw: what a drawing is made of, and what it starts from.

Lengths and widths are as in `clipdraw`: full widths, in pixels of a canvas of 224² pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageColor
from torch import Tensor

from clipag_plugins.arguments import width_and_height
from clipag_plugins.defaults import SHAPES, SIDE, STROKE_WIDTH, STROKES
from clipag_plugins.errors import ClipagError
from clipag_plugins.pictures import from_pil, open_picture

CANVAS_SIDE = 224
MOST_STROKES = 16384
MOST_SEGMENTS = 3  # of a stroke
MOVE_RANGE = 0.1  # of a random move from one point to the next, as a share of the side
COVER = 2.0  # strokes that start from a picture have this many times the area of the canvas


def read_colour(colour: str, argument: str) -> Tensor:
    """Return a colour as RGB (3,) in [0, 1].

    Args:
        colour: hexadecimal, as "#e63946" or "e63946", or a CSS name.
        argument: the name of the argument that gives the colour, for the error.

    Raises:
        ClipagError: it is not a colour.
    """
    for spelling in (colour, f"#{colour}"):
        try:
            return torch.tensor(ImageColor.getrgb(spelling)[:3]) / 255
        except ValueError:
            continue
    raise ClipagError(
        f"`{argument}` names {colour!r}, which is not a colour: write a colour as e63946, or by "
        "its name."
    )


def read_palette(colours: Sequence[str]) -> Tensor:
    """Return colours as (K, 3) in [0, 1].

    Args:
        colours: as `read_colour` takes them.

    Raises:
        ClipagError: one of them is not a colour.
    """
    return torch.stack([read_colour(colour, "palette") for colour in colours])


@dataclass(frozen=True)
class Drawing:
    """What a drawing is made of.

    Args:
        strokes: number of paths, 1 to 16,384. The squares of "pixel" fill a grid, so there are at
            most that many: on a square canvas, the largest square number up to this.
        shapes: "stroke"; "fill" for closed paths that are filled; or "pixel" for a grid of
            squares of which only the colours change.
        width: smallest and largest width of strokes, in pixels of a canvas of 224.
        palette: the colours that may be used, as `read_palette` takes them; empty for all.
        init: "random", or a picture, or its path, that gives the strokes their first colours.
        background: the colour of the paper, as `read_colour` takes it, or "none" for a transparent
            drawing, which is judged on white.

    Raises:
        ClipagError: a value is out of its range.
    """

    strokes: int = STROKES
    shapes: str = "stroke"
    width: tuple[float, float] = STROKE_WIDTH
    palette: Sequence[str] = ()
    init: str | Path | Image.Image = "random"
    background: str = "white"

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
        self.palette_colours()
        self.background_colour()

    def background_colour(self) -> Tensor | None:
        """Return the RGB (3,) of the background in [0, 1]; None if it is transparent."""
        return None if self.background == "none" else read_colour(self.background, "background")

    def grid(self, size: int | tuple[int, int]) -> tuple[int, int]:
        """Return the columns and rows of at most `strokes` squares that fill such a canvas."""
        width, height = width_and_height(size)
        columns = min(max(1, math.isqrt(self.strokes * width // height)), self.strokes)
        rows = min(max(1, math.isqrt(self.strokes * height // width)), self.strokes // columns)
        return columns, rows

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


def mean_side(size: int | tuple[int, int]) -> float:
    """Return the side of the square that has the area of a picture of this size, in pixels."""
    width, height = width_and_height(size)
    return math.sqrt(width * height)


def starting_strokes(
    seed: int, drawing: Drawing = Drawing(), size: int | tuple[int, int] = SIDE
) -> Strokes:
    """Return the strokes that one drawing (B = 1) starts from.

    Random strokes are the notebook's: random walks of 1 to 3 segments, in random colours and of the
    smallest width. If `drawing.init` is a picture, they are opaque, in the mean colours of the
    places where they lie, and so wide that together they cover the canvas.

    Args:
        seed: where all random numbers come from.
        drawing: what the drawing is made of.
        size: side of the rendered picture, or its (width, height). The squares of "pixel" are
            aligned to its pixels.

    Raises:
        ClipagError: the picture cannot be read.
    """
    generator = torch.Generator().manual_seed(seed)
    proportions = torch.tensor(width_and_height(size)) / mean_side(size)
    if drawing.shapes == "pixel":
        points = _squares(drawing.grid(size), size)
        segments = torch.full((len(points),), 4)
    else:
        is_open = drawing.shapes == "stroke"
        points, segments = _random_walks(drawing.strokes, is_open, proportions, generator)
    colours = torch.rand(len(points), 4, generator=generator)
    widths = torch.full((len(points),), float(drawing.width[0]))
    palette = drawing.palette_colours()
    if palette is not None:
        chosen = torch.randint(len(palette), (len(points),), generator=generator)
        colours[:, :3] = palette[chosen]
    if drawing.init != "random":
        colours, widths = _look_of_picture(points, segments, drawing, size)
    return Strokes(points[None], segments[None], widths[None], colours[None])


def _random_walks(
    count: int, is_open: bool, proportions: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the points (count, 10, 2) of random paths and their numbers of segments (count,).

    Closed paths have 9 points, since the last segment ends at the first point. The proportions (2,)
    are the width and height of the canvas as shares of its mean side.
    """
    length = 3 * MOST_SEGMENTS + is_open
    start = torch.rand(count, 1, 2, generator=generator) * proportions
    moves = MOVE_RANGE * (torch.rand(count, length - 1, 2, generator=generator) - 0.5)
    points = torch.cat([start, start + moves.cumsum(1)], dim=1) * CANVAS_SIDE
    segments = torch.randint(1, MOST_SEGMENTS + 1, (count,), generator=generator)
    return points, segments if is_open else torch.full_like(segments, MOST_SEGMENTS)


def _look_of_picture(
    points: Tensor, segments: Tensor, drawing: Drawing, size: int | tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the colours (P, 4) and widths (P,) of paths that start from a picture."""
    columns, rows = drawing.grid(size)
    cells = from_pil(open_picture(drawing.init), (columns, rows)).permute(1, 2, 0)
    is_open = drawing.shapes == "stroke"
    is_used = torch.arange(points.shape[1]) < 3 * segments[:, None] + is_open
    centres = (points * is_used[..., None]).sum(1) / is_used.sum(1, keepdim=True)
    proportions = torch.tensor(width_and_height(size)) / mean_side(size)
    places = centres / CANVAS_SIDE / proportions * torch.tensor([columns, rows])
    column, row = places.long().T
    column, row = column.clamp(0, columns - 1), row.clamp(0, rows - 1)
    colours = torch.cat([cells[row, column], torch.ones(len(points), 1)], dim=1)
    lengths = (points[:, 1:] - points[:, :-1]).norm(dim=-1) * is_used[:, 1:]
    width = COVER * CANVAS_SIDE**2 / float(lengths.sum())
    return colours, torch.full((len(points),), width).clamp(*drawing.width)


def _squares(grid: tuple[int, int], size: int | tuple[int, int]) -> Tensor:
    """Return columns × rows squares (P, 12, 2) that fill the canvas, as closed cubic paths."""
    # Edges lie between pixels of the picture. Inside a pixel, two squares would leave a seam.
    across, down = (
        (torch.arange(count + 1) * side / count).round() * CANVAS_SIDE / mean_side(size)
        for count, side in zip(grid, width_and_height(size), strict=True)
    )
    top, left = torch.meshgrid(down[:-1], across[:-1], indexing="ij")
    bottom, right = torch.meshgrid(down[1:], across[1:], indexing="ij")
    corners = torch.stack([left, top, right, top, right, bottom, left, bottom], dim=-1)
    corners = corners.view(-1, 4, 1, 2)
    along = torch.tensor([0, 1 / 3, 2 / 3]).view(3, 1)
    return torch.lerp(corners, corners.roll(-1, 1), along).flatten(1, 2)
