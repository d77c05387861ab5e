"""The node that draws with strokes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from clipag_plugins.defaults import SHAPES, STROKE_STEPS, STROKE_WIDTH, STROKES
from clipag_plugins.integrations.comfyui.drawing import CATEGORY, LOAD, MODEL, MOST_STEPS, TARGET
from clipag_plugins.integrations.comfyui.goals import Part, encoded
from clipag_plugins.integrations.comfyui.host import (
    Managed,
    Progress,
    Svg,
    need,
    svg_of,
    with_gradients,
)
from clipag_plugins.integrations.comfyui.images import drawable, image_of
from clipag_plugins.integrations.comfyui.widgets import (
    Input,
    batch_widget,
    choice,
    inputs_of,
    integer,
    number,
    seed_widget,
    side_widget,
    socket,
    string,
    switch,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from clipag_plugins.base import ClipagModel
    from clipag_plugins.integrations.clipdraw import StrokeCanvas


@dataclass(frozen=True)
class DrawWidgets:
    """The widgets of `Draw`."""

    seed: int = seed_widget()
    width: int = side_widget("Width")
    height: int = side_widget("Height")
    batch_size: int = batch_widget()
    steps: int = integer(STROKE_STEPS, 1, MOST_STEPS, "Updates of the drawing.")
    strokes: int = integer(STROKES, 1, 16_384, "Paths of the drawing.")
    shapes: str = choice(
        SHAPES, SHAPES[0], "Curves, filled closed curves, or a grid of squares (pixel)."
    )
    least_width: float = number(
        STROKE_WIDTH[0], 0.1, 224, "Least width of strokes, in 224ths of the side.", 0.1
    )
    most_width: float = number(
        STROKE_WIDTH[1], 0.1, 224, "Greatest width of strokes, in 224ths of the side.", 0.1
    )
    palette: str = string(
        "", "The only colours to use, as: black, e63946. Empty for all.", multiline=False
    )
    background: str = string(
        "white", "The paper, as e63946 or by name, or none for transparency.", multiline=False
    )
    augment: bool = switch(True, "Guide by 4 random views instead of the drawing itself.")


class Draw:
    """Draw with strokes, as SVG (CLIPDraw)."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draw a target with strokes (CLIPDraw). Save SVG writes the drawing as vectors; the mask "
        "is white where a drawing without background is transparent."
    )
    RETURN_TYPES = ("IMAGE", "SVG", "MASK")
    RETURN_NAMES = ("image", "svg", "mask")
    OUTPUT_TOOLTIPS = (
        "The drawings as pixels.",
        "The drawings as vectors, for Save SVG.",
        "White where a drawing is transparent.",
    )
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        image = socket("IMAGE", "A picture that gives the strokes their first colours.")
        return {
            "required": {"model": MODEL, "target": TARGET, **inputs_of(DrawWidgets)},
            "optional": {"image": image},
        }

    @with_gradients
    def run(
        self,
        model: "Managed[ClipagModel]",
        target: Sequence[Part],
        image: "Tensor | None" = None,
        **widgets: Any,
    ) -> "tuple[Tensor, Svg, Tensor]":
        """Return the drawings as IMAGE, SVG and MASK."""
        import torch

        from clipag_plugins.integrations.clipdraw import Drawing, draw

        chosen = DrawWidgets(**widgets)
        starts: list[str | Image.Image]
        starts = ["random"] if image is None else [*drawable(image)]
        drawings = [
            Drawing(
                chosen.strokes,
                chosen.shapes,
                (chosen.least_width, chosen.most_width),
                [colour.strip() for colour in chosen.palette.split(",") if colour.strip()],
                start,
                chosen.background.strip(),
            )
            for start in starts
        ]
        clip = need(model, "model", LOAD).ready()
        targets, progress = encoded(target, clip), Progress(chosen.steps, len(drawings))
        images: list[Tensor] = []
        files: list[str] = []
        transparent: list[Tensor] = []
        for drawing, start in zip(drawings, starts, strict=True):
            size = (chosen.width, chosen.height) if isinstance(start, str) else start.size
            ascent = draw(
                [targets],
                clip,
                steps=chosen.steps,
                seed=range(chosen.seed, chosen.seed + chosen.batch_size),
                size=size,
                drawing=drawing,
                augment=chosen.augment,
                callback=progress,
                options=model.options,
            )
            images += ascent.images
            canvas = cast("StrokeCanvas", ascent.canvas)
            transparent += 1 - canvas.render_transparent()[:, 3].detach().cpu()
            texts = [part.content for part in target if isinstance(part.content, str)]
            prompt = {"prompt": "; ".join(texts), "model": clip.name}
            files += _svg_files(canvas, {**prompt, **asdict(chosen)})
        background = drawings[0].background_colour()
        masks = torch.stack(transparent)
        masks = masks if background is None else torch.zeros_like(masks)
        return image_of(images), svg_of(files), masks


def _svg_files(canvas: "StrokeCanvas", metadata: dict[str, Any]) -> list[str]:
    """Return the text of an SVG file for each drawing; `metadata` has the seed of the first."""
    from clipag_plugins.integrations.vector.svg import to_svg

    background, size = canvas.drawing.background_colour(), (canvas.height, canvas.width)
    return [
        to_svg(
            canvas.groups(index), size, background, {**metadata, "seed": metadata["seed"] + index}
        )
        for index in range(len(canvas.points))
    ]
