"""Nodes that see: similarities of pictures and texts, and heat maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipag_plugins.defaults import HEAT_MAP_METHOD, HEAT_MAP_METHODS
from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.comfyui.drawing import CATEGORY, LOAD, MODEL
from clipag_plugins.integrations.comfyui.goals import check_length
from clipag_plugins.integrations.comfyui.host import Managed, need, with_gradients
from clipag_plugins.integrations.comfyui.images import image_of, pictures_of, tensors_of
from clipag_plugins.integrations.comfyui.widgets import Input, choice, inputs_of, socket, string

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from clipag_plugins.base import ClipagModel

STRIP_SIDE, LINE_HEIGHT, FONT_SIZE, MARGIN = 224, 18, 13, 6  # pixels


@dataclass(frozen=True)
class ScoreWidgets:
    """The widget of `Score`."""

    texts: str = string("a red apple\na castle", "What to compare with: one text in each line.")


class Score:
    """Measure how similar pictures and texts are."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "How similar each picture is to each text: the cosine of their embeddings, picture by "
        "picture, and a strip that shows them."
    )
    RETURN_TYPES = ("FLOAT", "IMAGE")
    RETURN_NAMES = ("similarity", "strip")
    OUTPUT_IS_LIST = (True, False)
    OUTPUT_TOOLTIPS = (
        "Similarities, at most 1: those of the first picture with all texts, then of the next.",
        "The pictures with their similarities below.",
    )
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        image = socket("IMAGE", "The pictures to compare.")
        return {"required": {"model": MODEL, "image": image, **inputs_of(ScoreWidgets)}}

    @with_gradients
    def run(
        self, model: "Managed[ClipagModel]", image: "Tensor", **widgets: Any
    ) -> "tuple[list[float], Tensor]":
        """Return the cosines, those of the first picture first, and the strip."""
        import torch
        from torch.nn import functional as F

        from clipag_plugins.base import transform
        from clipag_plugins.targets import text_embeddings

        pictures = pictures_of(image)
        lines = ScoreWidgets(**widgets).texts.splitlines()
        texts = [line.strip() for line in lines if line.strip()]
        if not texts:
            raise ClipagError(
                "`texts` is empty: write what to compare with, one text in each line."
            )
        for text in texts:
            check_length("texts", text)
        clip = need(model, "model", LOAD).ready()
        preprocess = transform(clip.visual.input_resolution, clip.preprocessing)
        batch = torch.stack([preprocess(picture) for picture in pictures])
        with torch.no_grad():
            parts = batch.split(model.options.max_views)
            z = torch.cat([clip.encode_image(part.to(clip.device)) for part in parts])
            cosines = F.normalize(z, dim=-1) @ text_embeddings(clip, texts).T
        table = cosines.float().cpu().tolist()
        strip = score_strip(pictures, texts, table)
        return [cosine for row in table for cosine in row], image_of([strip])


def score_strip(
    pictures: "Sequence[Image.Image]", texts: Sequence[str], table: Sequence[Sequence[float]]
) -> "Image.Image":
    """Return the pictures side by side, below each its similarities (B, T), the highest first."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    height = STRIP_SIDE + LINE_HEIGHT * len(texts) + 2 * MARGIN
    strip = Image.new("RGB", (MARGIN + (STRIP_SIDE + MARGIN) * len(pictures), height), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(FONT_SIZE)
    for number, (picture, cosines) in enumerate(zip(pictures, table, strict=True)):
        left = MARGIN + number * (STRIP_SIDE + MARGIN)
        strip.paste(ImageOps.pad(picture, (STRIP_SIDE, STRIP_SIDE), color="white"), (left, MARGIN))
        ranked = sorted(zip(cosines, texts, strict=True), reverse=True)
        for line, (cosine, text) in enumerate(ranked):
            label = f"{cosine:.3f} {text}"
            while font.getlength(label) > STRIP_SIDE:
                label = label[:-2] + "…"
            top = MARGIN + STRIP_SIDE + line * LINE_HEIGHT + 1
            draw.text((left, top), label, "black" if line == 0 else "dimgray", font)
    return strip


@dataclass(frozen=True)
class ExplainWidgets:
    """The widgets of `Explain`."""

    text: str = string("a red apple", "What to look for.")
    method: str = choice(
        HEAT_MAP_METHODS,
        HEAT_MAP_METHOD,
        "How the heat map is made. grad and smoothgrad need no extra package.",
    )


class Explain:
    """Show where a model finds a text."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Where pictures show a text: the heat map over the picture, and as a mask, which other "
        "nodes can use as a selection. Most methods need pip install 'clipag-plugins[explain]'."
    )
    RETURN_TYPES = ("IMAGE", "MASK")
    OUTPUT_TOOLTIPS = (
        "The pictures, with the heat map over them.",
        "The heat map: white where the text is. Threshold Mask makes a selection of it.",
    )
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        image = socket("IMAGE", "The pictures to look at.")
        return {"required": {"model": MODEL, "image": image, **inputs_of(ExplainWidgets)}}

    @with_gradients
    def run(
        self, model: "Managed[ClipagModel]", image: "Tensor", **widgets: Any
    ) -> "tuple[Tensor, Tensor]":
        """Return the overlays, and the heat maps (B, H, W) in [0, 1]."""
        from clipag_plugins.explain import contrast_targets, heat_maps, overlay

        chosen, images = ExplainWidgets(**widgets), tensors_of(image)
        check_length("text", chosen.text)
        clip = need(model, "model", LOAD).ready()
        images = images.to(clip.device)
        targets = contrast_targets(clip, [chosen.text]) * len(images)
        heat = heat_maps(clip, images, targets, chosen.method).detach().float().cpu()
        pictures = [overlay(*pair) for pair in zip(images, heat, strict=True)]
        return image_of(pictures), heat
