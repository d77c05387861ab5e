"""The node that repaints photos."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from clipag_plugins.defaults import (
    STYLE_CONTENT_WEIGHT,
    STYLE_PATCHES,
    STYLE_STEPS,
    STYLE_STRENGTH,
    STYLE_THRESHOLD,
    STYLE_TV,
    STYLE_WHOLE,
)
from clipag_plugins.integrations.comfyui.drawing import CATEGORY, LOAD, MODEL, MOST_STEPS
from clipag_plugins.integrations.comfyui.goals import check_length
from clipag_plugins.integrations.comfyui.host import Managed, Progress, need, with_gradients
from clipag_plugins.integrations.comfyui.images import image_of, masks_of, pictures_of
from clipag_plugins.integrations.comfyui.widgets import (
    Input,
    inputs_of,
    integer,
    number,
    seed_widget,
    socket,
    string,
    switch,
)

if TYPE_CHECKING:
    from torch import Tensor

    from clipag_plugins.base import ClipagModel


@dataclass(frozen=True)
class StyleWidgets:
    """The widgets of `Style`: the style, the seed, and the weights of the losses."""

    text: str = string("a watercolor painting", "The style, in words.")
    seed: int = seed_widget()
    steps: int = integer(STYLE_STEPS, 1, MOST_STEPS, "Updates.")
    network: bool = switch(
        False, "Train CLIPStyler's network on the photo, in about 100 steps. Off: change the photo."
    )
    strength: float = number(STYLE_STRENGTH, 0, 100, "Weight of the style.")
    patches: int = integer(STYLE_PATCHES, 0, 4096, "Random crops an update, 0 for none.")
    threshold: float = number(
        STYLE_THRESHOLD, 0, 2, "Crops nearer to the style, in 1 − cosine, stop pulling."
    )
    whole: float = number(STYLE_WHOLE, 0, 100, "Weight of the whole picture's style.", 0.001)
    content_weight: float = number(STYLE_CONTENT_WEIGHT, 0, 1000, "Weight of the photo's content.")
    tv: float = number(STYLE_TV, 0, 1000, "Weight of the total variation.")


class Style:
    """Repaint a photo in the style of a text (CLIPStyler)."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Repaint photos in the style of a text (CLIPStyler), each at its own size."
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The repainted photos.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        image = socket("IMAGE", "The photos.")
        return {
            "required": {"model": MODEL, "image": image, **inputs_of(StyleWidgets)},
            "optional": {"mask": socket("MASK", "Style only what is white in it.")},
        }

    @with_gradients
    def run(
        self,
        model: "Managed[ClipagModel]",
        image: "Tensor",
        mask: "Tensor | None" = None,
        **widgets: Any,
    ) -> "tuple[Tensor]":
        """Return the repainted photos."""
        from clipag_plugins.integrations.clipstyler import Losses, style
        from clipag_plugins.masks import weight_of
        from clipag_plugins.pictures import from_pil

        chosen = asdict(StyleWidgets(**widgets))
        text, seed, steps, network = (
            chosen.pop(name) for name in ("text", "seed", "steps", "network")
        )
        check_length("text", text)
        losses, photos = Losses(**chosen), pictures_of(image)
        masks = [None] * len(photos) if mask is None else masks_of(mask, photos)
        clip = need(model, "model", LOAD).ready()
        progress, images = Progress(steps, len(photos)), []
        for photo, white in zip(photos, masks, strict=True):
            ascent = style(
                from_pil(photo, photo.size),
                text,
                clip,
                losses=losses,
                network=network,
                mask=None if white is None else weight_of(white, photo.size),
                steps=steps,
                seed=seed,
                callback=progress,
                options=model.options,
            )
            images.append(ascent.images[0])
        return (image_of(images),)
