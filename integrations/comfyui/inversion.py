"""The node that draws pictures anew from their embeddings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipag_plugins.arguments import LARGEST, MOST_VIEWS, SMALLEST
from clipag_plugins.defaults import BLUR, INVERSION_CLOSENESS, SIDE
from clipag_plugins.integrations.comfyui.drawing import (
    AS_SUITS,
    CATEGORY,
    LOAD,
    MODEL,
    MOST_STEPS,
    MOST_TRIES,
)
from clipag_plugins.integrations.comfyui.host import Managed, Progress, need, with_gradients
from clipag_plugins.integrations.comfyui.images import image_of, pictures_of
from clipag_plugins.integrations.comfyui.widgets import (
    Input,
    batch_widget,
    choice,
    inputs_of,
    integer,
    number,
    seed_widget,
    socket,
)

if TYPE_CHECKING:
    from torch import Tensor

    from clipag_plugins.base import ClipagModel


@dataclass(frozen=True)
class InvertWidgets:
    """The widgets of `Invert`."""

    seed: int = seed_widget()
    batch_size: int = batch_widget()
    side: int = integer(SIDE, SMALLEST, LARGEST, "Side of the pictures in pixels.", step=8)
    closeness: float = number(
        INVERSION_CLOSENESS, 0, 1, "Share of the blurred picture in the start; 0 is from nothing."
    )
    blur: float = number(BLUR, 0, 0.3, "Deviation of the blur, as a share of the side.")
    steps: int = integer(0, 0, MOST_STEPS, f"Updates of the picture. {AS_SUITS}")
    views: int = integer(0, 0, MOST_VIEWS, f"Augmented views for each update. {AS_SUITS}")
    tries: int = integer(
        0, 0, MOST_TRIES, f"Starts for each picture, of which the best result is kept. {AS_SUITS}"
    )
    start: str = choice(("gmm", "noise"), "gmm", "The rest of the start: the mixture, or noise.")


class Invert:
    """Draw pictures anew from their embeddings."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draw pictures anew from nothing but their embeddings. A batch gives variations of each: "
        "one embedding, other starts."
    )
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The pictures: all variations of the first one, then of the next.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        image = socket("IMAGE", "The pictures, of which the middle squares are drawn.")
        return {"required": {"model": MODEL, "image": image, **inputs_of(InvertWidgets)}}

    @with_gradients
    def run(
        self, model: "Managed[ClipagModel]", image: "Tensor", **widgets: Any
    ) -> "tuple[Tensor]":
        """Return the pictures: the variations of the first one first."""
        from clipag_plugins.inversion import Inversion, invert

        chosen, pictures = InvertWidgets(**widgets), pictures_of(image)
        how = Inversion(
            chosen.start,
            chosen.closeness,
            chosen.blur,
            range(chosen.seed, chosen.seed + chosen.batch_size),
            chosen.side,
            chosen.steps or None,
            chosen.views or None,
            chosen.tries or None,
        )
        clip = need(model, "model", LOAD).ready()
        progress = Progress(how.settings_for(clip).steps)
        ascent = invert(pictures, clip, how, callback=progress, options=model.options)
        return (image_of([*ascent.images]),)
