"""Nodes that draw from nothing, from a picture, or inside a mask: pixel ascent and a VQGAN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipag_plugins.arguments import MOST_VIEWS
from clipag_plugins.defaults import (
    CANVASES,
    VQGAN_STEPS,
)
from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.comfyui.goals import Part, encoded
from clipag_plugins.integrations.comfyui.host import (
    Managed,
    Progress,
    need,
    with_gradients,
)
from clipag_plugins.integrations.comfyui.images import drawable, image_of, masks_of
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
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from clipag_plugins.base import ClipagModel
    from clipag_plugins.masks import Masked

CATEGORY = "CLIPAG"
MOST_STEPS = 10_000
MOST_TRIES = 64
AS_SUITS = "0 is what suits the model."
MODEL = socket("CLIPAG_MODEL", "The CLIP that guides, from CLIPAG Load Model.")
TARGET = socket("CLIPAG_TARGET", "What the picture should be like.")
IMAGE = socket("IMAGE", "A picture to start from. Each of a batch is changed by itself.")
MASK = socket("MASK", "Only what is white in it changes. It needs a picture.")
LOAD = "connect CLIPAG Load Model"


@dataclass(frozen=True)
class SampleWidgets:
    """The widgets of `Sample`."""

    seed: int = seed_widget()
    width: int = side_widget("Width")
    height: int = side_widget("Height")
    batch_size: int = batch_widget()
    steps: int = integer(0, 0, MOST_STEPS, f"Updates of the picture. {AS_SUITS}")
    views: int = integer(
        0, 0, MOST_VIEWS, f"Augmented views of the picture for each update. {AS_SUITS}"
    )
    tries: int = integer(
        0,
        0,
        MOST_TRIES,
        "Starts for each picture, of which the best result is kept. 0 is what suits the model, "
        "and 1 if a picture is connected.",
    )
    canvas: str = choice(
        CANVASES,
        CANVASES[0],
        "What changes: the pixels, a pyramid of resolutions, or the spectrum (fft). auto is what "
        "suits the model.",
    )
    start: str = choice(
        ("gmm", "noise"),
        "gmm",
        "What to start from without a picture: a soft random one (gmm, the paper's mixture), or "
        "noise.",
    )


class Sample:
    """Draw by pixel ascent, with no generator."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Draw a target by pixel ascent along CLIPAG's gradient, with no generator: from nothing, "
        "from a picture, or inside a mask of it."
    )
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The pictures: those of all seeds, for each connected picture.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        return {
            "required": {"model": MODEL, "target": TARGET, **inputs_of(SampleWidgets)},
            "optional": {"image": IMAGE, "mask": MASK},
        }

    @with_gradients
    def run(
        self,
        model: "Managed[ClipagModel]",
        target: Sequence[Part],
        image: "Tensor | None" = None,
        mask: "Tensor | None" = None,
        **widgets: Any,
    ) -> "tuple[Tensor]":
        """Return the pictures: those of all seeds for each of the images to start from."""
        from clipag_plugins.sampler import sample, settings_for

        chosen, starts = SampleWidgets(**widgets), _starts(image, mask)
        clip = need(model, "model", LOAD).ready()
        settings = settings_for(
            clip,
            steps=chosen.steps or None,
            views=chosen.views or None,
            tries=chosen.tries or None,
            canvas=chosen.canvas,
            init=starts[0] or chosen.start,
        )
        targets = encoded(target, clip)
        progress = Progress(settings.steps, len(starts))
        images: list[Tensor] = []
        for start in starts:
            ascent = sample(
                [targets],
                clip,
                settings,
                seed=range(chosen.seed, chosen.seed + chosen.batch_size),
                size=_size(start) or (chosen.width, chosen.height),
                init=start or chosen.start,
                callback=progress,
                options=model.options,
            )
            images += ascent.images
        return (image_of(images),)


@dataclass(frozen=True)
class VqganWidgets:
    """The widgets of `DrawWithVqgan`."""

    seed: int = seed_widget()
    width: int = side_widget("Width")
    height: int = side_widget("Height")
    batch_size: int = batch_widget()
    steps: int = integer(VQGAN_STEPS, 1, MOST_STEPS, "Updates of the latent.")
    views: int = integer(0, 0, MOST_VIEWS, "Cut-outs for each update. 0 is what suits the VQGAN.")
    rate: float = number(0.0, 0, 10, "Learning rate. 0 is what suits the VQGAN.")
    start: str = choice(
        ("auto", "gmm", "noise", "pixels", "gradient"),
        "auto",
        "What to start from without a picture: a soft random one (gmm), noise, coloured pixels, or "
        "a gradient. auto is what suits the VQGAN.",
    )


class DrawWithVqgan:
    """Draw with a VQGAN (VQGAN+CLIP)."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Draw a target with a VQGAN (VQGAN+CLIP), from nothing or from a picture."
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The pictures: those of all seeds, for each connected picture.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        vqgan = socket("CLIPAG_VQGAN", "The VQGAN that draws, from CLIPAG Load VQGAN.")
        sockets = {"model": MODEL, "vqgan": vqgan, "target": TARGET}
        return {
            "required": {**sockets, **inputs_of(VqganWidgets)},
            "optional": {"image": IMAGE, "mask": MASK},
        }

    @with_gradients
    def run(
        self,
        model: "Managed[ClipagModel]",
        vqgan: "Managed[nn.Module]",
        target: Sequence[Part],
        image: "Tensor | None" = None,
        mask: "Tensor | None" = None,
        **widgets: Any,
    ) -> "tuple[Tensor]":
        """Return the pictures: those of all seeds for each of the images to start from."""
        from dataclasses import replace

        from clipag_plugins.integrations.vqgan import Cutouts, draw, settings_for

        chosen, starts = VqganWidgets(**widgets), _starts(image, mask)
        generator = need(vqgan, "vqgan", "connect CLIPAG Load VQGAN").ready()
        clip = need(model, "model", LOAD).ready()
        settings = settings_for(generator)
        settings = replace(
            settings,
            init=settings.init if chosen.start == "auto" else chosen.start,
            rate=chosen.rate or settings.rate,
            views=Cutouts(chosen.views) if chosen.views else settings.views,
        )
        targets, seeds = encoded(target, clip), range(chosen.seed, chosen.seed + chosen.batch_size)
        runs = [(start, seed) for start in starts for seed in seeds]
        progress = Progress(chosen.steps, len(runs))
        images: list[Tensor] = []
        for start, seed in runs:
            ascent = draw(
                [targets],
                clip,
                generator,
                steps=chosen.steps,
                seed=seed,
                size=_size(start) or (chosen.width, chosen.height),
                settings=settings if start is None else replace(settings, init=start),
                callback=progress,
                options=model.options,
            )
            images.append(ascent.images[0])
        return (image_of(images),)


def _starts(image: "Tensor | None", mask: "Tensor | None") -> "list[Image.Image | Masked | None]":
    """Return what each ascent starts from, which is None without a picture.

    Raises:
        ClipagError: there is a mask and no picture, or they do not fit.
    """
    from clipag_plugins.masks import Masked

    if image is None:
        if mask is not None:
            raise ClipagError("`mask` needs a picture to change: connect `image`.")
        return [None]
    pictures = drawable(image)
    if mask is None:
        return [*pictures]
    masks = masks_of(mask, pictures)
    return [Masked(*pair) for pair in zip(pictures, masks, strict=True)]


def _size(start: "Image.Image | Masked | None") -> tuple[int, int] | None:
    """Return the (width, height) of the picture that an ascent starts from."""
    from clipag_plugins.masks import Masked
    from clipag_plugins.pictures import open_picture

    if start is None:
        return None
    return open_picture(start.picture if isinstance(start, Masked) else start).size
