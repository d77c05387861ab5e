"""CLIPDraw: strokes as a canvas.

Frans et al., "CLIPDraw: Exploring Text-to-Drawing Synthesis through Language-Image Encoders",
NeurIPS 2022. The constants are those of the authors' notebook. The notebook leaves out CLIP's
normalisation of images but recommends it; the guide normalises.

Lengths are in pixels of the notebook's canvas, 224 on each side, whatever the size of the picture.
A canvas that is not square has the same area, so as many strokes cover it.
Stroke widths are full widths, as in SVG. diffvg counts half widths, so all widths in this module
are twice the notebook's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count as count_from
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.arguments import RunOptions, check_steps, seeds_of, width_and_height
from clipag_plugins.ascent import Ascent, Callback, ascend
from clipag_plugins.base import ClipagModel, resample
from clipag_plugins.canvas import Canvas
from clipag_plugins.defaults import SIDE, STROKE_STEPS
from clipag_plugins.guide import Guide
from clipag_plugins.integrations.strokes import (
    CANVAS_SIDE,
    Drawing,
    Strokes,
    mean_side,
    read_palette,
    starting_strokes,
)
from clipag_plugins.integrations.vector import paths
from clipag_plugins.integrations.vector.renderer import compose_on, render_paths, straight
from clipag_plugins.integrations.vector.svg import to_svg
from clipag_plugins.pictures import to_pil
from clipag_plugins.prior.drawing import picture_targets
from clipag_plugins.targets import Prompt, text_target
from clipag_plugins.trajectory import FRAMES
from clipag_plugins.views import one_view

__all__ = [
    "Drawing",
    "Perspectives",
    "StrokeCanvas",
    "Strokes",
    "WholePicture",
    "draw",
    "read_palette",
    "starting_strokes",
    "stroke_by_stroke",
]

POINT_RATES = ((0.0, 1.0), (0.5, 0.4), (0.75, 0.1))  # (share of the steps done, learning rate)
WIDTH_RATE = 0.2
COLOUR_RATE = 0.01
NEGATIVE_WEIGHT = -0.3
WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Perspectives:
    """The notebook's views: the picture in a random perspective on white, and a large crop of that.

    They have the distribution of torchvision's `RandomPerspective(0.5, p=1, fill=1)`, followed by
    `RandomResizedCrop(scale=(0.7, 0.9))`, but kornia computes them. An image that is not square
    lies on a square of the background.

    Args:
        count: views of one image.
        background: the RGB in [0, 1] around the picture, white by default.
    """

    count: int = 4
    background: tuple[float, float, float] = WHITE

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return views (B, count, 3, size, size) of images (B, 3, H, W), and weights (count,).

        Random numbers come from torch's global generator and are the same for every image of the
        batch.
        """
        # Shrunk first so that a crop is about `size` pixels wide, and needs no filter.
        square = _on_square(images, self.background)
        source = resample(square, min(square.shape[-1], round(size / 0.8**0.5)))
        # kornia fills the outside with 0, which is the background in this difference.
        background = images.new_tensor(self.background).view(3, 1, 1)
        difference = (background - source)[:, None].expand(-1, self.count, -1, -1, -1)
        views = background - _same_for_all_images(_perspective_and_crop(size), difference)
        return views, images.new_full((self.count,), 1 / self.count)


@dataclass(frozen=True)
class WholePicture:
    """The picture itself as its only view; if it is not square, on a square of the background.

    Args:
        background: RGB in [0, 1], white by default.
    """

    background: tuple[float, float, float] = WHITE
    count = 1

    def __call__(self, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return views (B, 1, 3, size, size) of images (B, 3, H, W), and the weight (1,)."""
        return one_view(_on_square(images, self.background), size)


def _on_square(images: Tensor, background: tuple[float, float, float]) -> Tensor:
    """Put images (B, 3, H, W) in the middle of squares (B, 3, S, S) of the longer side."""
    height, width = images.shape[-2:]
    side = max(height, width)
    if height == width:
        return images
    top, left = (side - height) // 2, (side - width) // 2
    colour = images.new_tensor(background).view(3, 1, 1)
    # Zeros around the difference from the background are the background itself.
    edges = (left, side - width - left, top, side - height - top)
    return F.pad(images - colour, edges) + colour


@cache
def _perspective_and_crop(size: int) -> list[Any]:
    import kornia.augmentation as K  # imported late, since it takes a second

    crop = K.RandomResizedCrop((size, size), scale=(0.7, 0.9), cropping_mode="resample")
    return [K.RandomPerspective(0.5, p=1.0), crop]


def _same_for_all_images(transforms: list[Any], views: Tensor) -> Tensor:
    """Apply kornia's transforms to views (B, V, 3, H, W).

    Each of the V views gets its own random numbers, which are the same for all B images.
    """
    b, v = views.shape[:2]
    flat = views.flatten(0, 1)
    for transform in transforms:
        drawn = transform.forward_parameters(torch.Size((v, *flat.shape[1:])))
        # All that kornia draws is one number or row a view, except the shape.
        repeated = {
            key: value if key == "forward_input_shape" else value.repeat(b, *[1] * (value.ndim - 1))
            for key, value in drawn.items()
        }
        flat = transform(flat, params=repeated)
    views = flat.unflatten(0, (b, v))
    return views


class StrokeCanvas(Canvas):
    """Drawings of strokes, or of filled shapes, on the background of the drawing.

    Args:
        start: the strokes to start from.
        drawing: the shapes, the range of widths, the palette and the background; the rest is in
            `start`.
        size: side of the rendered picture in pixels, or its (width, height).
        steps: length of the ascent. The learning rate of the points falls over so many steps.
    """

    def __init__(
        self,
        start: Strokes,
        drawing: Drawing = Drawing(),
        size: int | tuple[int, int] = SIDE,
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
        self.width, self.height = width_and_height(size)
        self.zoom = mean_side(size) / CANVAS_SIDE
        self.steps = steps

    def render(self) -> Tensor:
        """Return the drawings (B, 3, height, width), transparent ones on white."""
        return self.render_first(self.points.shape[1])

    def render_first(self, count: int) -> Tensor:
        """Return the drawings (B, 3, height, width) after their first `count` paths."""
        image = self._paint(count)
        return compose_on(image, image.new_tensor(paper(self.drawing)))

    def render_transparent(self) -> Tensor:
        """Return the drawings without a background, RGBA with straight alpha (B, 4, H, W)."""
        return straight(self._paint(self.points.shape[1]))

    def _paint(self, count: int) -> Tensor:
        """Return the first `count` paths, RGBA with premultiplied alpha (B, 4, H, W)."""
        zoom = self.zoom
        points = self.points[:, :count] * zoom
        size, colours = (self.height, self.width), self.painted_colours()[:, :count]
        if self.drawing.shapes == "stroke":
            widths, segments = self.widths[:, :count] * zoom, self.segments[:, :count]
            return render_paths(points, size, strokes=colours, widths=widths, segments=segments)
        return render_paths(points, size, fills=colours, is_closed=True)

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
        zoom = self.zoom
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

    def _repr_svg_(self) -> str | None:
        """Return a single drawing as SVG, which Jupyter shows; None if there are several."""
        if len(self.points) > 1:
            return None
        background = self.drawing.background_colour()
        return to_svg(self.groups(0), (self.height, self.width), background=background)


def draw(
    prompts: Sequence[Prompt],
    model: ClipagModel,
    *,
    steps: int = STROKE_STEPS,
    seed: int | Sequence[int] = 0,
    size: int | tuple[int, int] = SIDE,
    drawing: Drawing = Drawing(),
    negative: Sequence[str] = (),
    augment: bool = True,
    callback: Callback | None = None,
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Draw prompts with strokes, as one batch.

    Args:
        prompts: what to draw: texts, or lists of targets that the model has encoded.
        model: the CLIP that guides.
        steps: number of updates.
        seed: the same seed gives the same drawing on the same machine. With several seeds every
            prompt is drawn once for each; the drawings of the first prompt come first.
        size: side of the picture in pixels, 16 to 2048, or its (width, height).
        drawing: number and kind of strokes, their widths and colours, the start, and the
            background.
        negative: what the drawing should not look like, each with a weight of −0.3.
        augment: guide by four `Perspectives` of the picture instead of the picture itself.
        callback: as for `ascend`.
        options: precision, memory, compilation and progress bar.

    Returns:
        The ascent, whose images show transparent drawings on white. Its canvas, a `StrokeCanvas`,
        holds the best iterate of each drawing. Ctrl-C ends the ascent and keeps the best so far.

    Raises:
        ClipagError: an argument is out of its range, or a file cannot be read.
    """
    width_and_height(size)
    check_steps(steps)
    seeds = seeds_of(seed)
    targets = picture_targets(model, prompts, seeds, options)
    negative_targets = [
        text_target(model, text, NEGATIVE_WEIGHT, options.truncate) for text in negative
    ]
    starts = [starting_strokes(number, drawing, size) for number in seeds]
    start = Strokes(
        *(torch.cat(parts * len(prompts)).to(model.device) for parts in zip(*starts, strict=True))
    )
    canvas = StrokeCanvas(start, drawing, size, steps)
    background = paper(drawing)
    guide = Guide(
        model,
        [[*of_drawing, *negative_targets] for of_drawing in targets],
        Perspectives(background=background) if augment else WholePicture(background),
        seeds=seeds * len(prompts),
        options=options,
    )
    ascent = ascend(canvas, guide, steps, callback=callback, progress=options.progress)
    canvas.load_state_dict(ascent.state)
    return ascent


def paper(drawing: Drawing) -> tuple[float, float, float]:
    """Return the RGB in [0, 1] of what a drawing is judged on: its background, or white."""
    background = drawing.background_colour()
    red, green, blue = WHITE if background is None else background.tolist()
    return red, green, blue


@torch.no_grad()
def stroke_by_stroke(canvas: StrokeCanvas) -> list[list[Image.Image]]:
    """Return about forty frames of each drawing, in which its paths appear one after another."""
    total = canvas.points.shape[1]
    counts = [*range(1, total, -(-total // FRAMES)), total]
    batches = ([to_pil(image) for image in canvas.render_first(count)] for count in counts)
    return [list(frames) for frames in zip(*batches, strict=True)]
