"""Nodes for targets: what a picture should be like, before a model encodes it.

A CLIPAG_TARGET is a tuple of parts. It belongs to no model, so that a workflow can change its model
without changing its targets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.comfyui.host import need, with_gradients
from clipag_plugins.integrations.comfyui.images import tensors_of
from clipag_plugins.integrations.comfyui.widgets import Input, inputs_of, number, socket, string

if TYPE_CHECKING:
    from torch import Tensor

    from clipag_plugins.base import ClipagModel
    from clipag_plugins.targets import Target

CATEGORY = "CLIPAG/targets"
HEAVIEST = 100.0
WEIGHT = "How much it counts. Below 0 the picture moves away from it."


@dataclass(frozen=True)
class Part:
    """A text, an image or an embedding that a picture should be like.

    Attributes:
        content: a text, an image (3, H, W) in [0, 1], or an embedding (D,).
        weight: how much it counts; a negative weight pushes the picture away.

    Raises:
        ClipagError: the text is empty or too long, the weight is 0, or the embedding is not finite.
    """

    content: "str | Tensor"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.content, str):
            if not self.content.strip():
                raise ClipagError("`text` is empty: write what the picture should show.")
            check_length("text", self.content)
        elif not self.content.isfinite().all():
            raise ClipagError("The target holds NaN or infinity: connect another one.")
        if self.weight == 0 or not math.isfinite(self.weight):
            raise ClipagError(f"`weight` is {self.weight:g}: choose a number that is not 0.")

    def encoded(self, model: "ClipagModel") -> "Target":
        """Return the part as a target of a model.

        Raises:
            ClipagError: the embedding is another model's.
        """
        from clipag_plugins.targets import embedding_target, image_target, text_target

        if isinstance(self.content, str):
            return text_target(model, self.content, self.weight)
        if self.content.ndim == 3:
            return image_target(model, self.content, self.weight)
        return embedding_target(model, self.content, self.weight)


def check_length(widget: str, text: str) -> None:
    """Raise ClipagError if a text in a widget has more tokens than models read."""
    from clipag_plugins.tokenizer import CONTEXT_LENGTH, shared_tokenizer

    count = len(shared_tokenizer().encode(text)) + 2  # with those of the start and the end
    if count > CONTEXT_LENGTH:
        raise ClipagError(
            f"`{widget}` has a text of {count} tokens, and models read {CONTEXT_LENGTH}: shorten "
            "the text."
        )


def encoded(target: Sequence[Part] | None, model: "ClipagModel") -> "list[Target]":
    """Return the parts of a CLIPAG_TARGET as targets of a model.

    Raises:
        ClipagError: there is none, or one does not suit the model.
    """
    parts = need(target, "target", "connect a text, or another target")
    return [part.encoded(model) for part in parts]


@dataclass(frozen=True)
class TextWidgets:
    """The widgets of `TextTarget`."""

    text: str = string("a red apple", "What the picture should show.")
    weight: float = number(1.0, -HEAVIEST, HEAVIEST, WEIGHT, 0.05)


@dataclass(frozen=True)
class WeightWidget:
    """The widget of the other targets."""

    weight: float = number(1.0, -HEAVIEST, HEAVIEST, WEIGHT, 0.05)


@dataclass(frozen=True)
class CombineWidgets:
    """The widgets of `CombineTargets`."""

    weight_a: float = number(1.0, -HEAVIEST, HEAVIEST, f"{WEIGHT} It multiplies those of a.", 0.05)
    weight_b: float = number(1.0, -HEAVIEST, HEAVIEST, f"{WEIGHT} It multiplies those of b.", 0.05)


class TextTarget:
    """A text as a target."""

    CATEGORY = CATEGORY
    DESCRIPTION = "A text that a picture should be like."
    RETURN_TYPES = ("CLIPAG_TARGET",)
    RETURN_NAMES = ("target",)
    OUTPUT_TOOLTIPS = ("The target, for a node that draws.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        return {"required": inputs_of(TextWidgets)}

    def run(self, **widgets: Any) -> tuple[tuple[Part, ...]]:
        """Return the target."""
        chosen = TextWidgets(**widgets)
        return ((Part(chosen.text, chosen.weight),),)


class ImageTarget:
    """A picture as a target."""

    CATEGORY = CATEGORY
    DESCRIPTION = "A picture that another one should be like. Several count as their mean."
    RETURN_TYPES = ("CLIPAG_TARGET",)
    RETURN_NAMES = ("target",)
    OUTPUT_TOOLTIPS = ("The target, for a node that draws.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        image = socket("IMAGE", "What the picture should be like.")
        return {"required": {"image": image, **inputs_of(WeightWidget)}}

    @with_gradients
    def run(self, image: "Tensor", **widgets: Any) -> tuple[tuple[Part, ...]]:
        """Return the target, of which each picture of the batch is a part."""
        images, weight = tensors_of(image), WeightWidget(**widgets).weight
        return (tuple(Part(each, weight / len(images)) for each in images),)


class EmbeddingTarget:
    """An embedding as a target."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "An image embedding that the picture should have, from CLIP Vision Encode. It must come "
        "from the model that guides. Several count as their mean."
    )
    RETURN_TYPES = ("CLIPAG_TARGET",)
    RETURN_NAMES = ("target",)
    OUTPUT_TOOLTIPS = ("The target, for a node that draws.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        output = socket("CLIP_VISION_OUTPUT", "The embedding, from CLIP Vision Encode.")
        return {"required": {"clip_vision_output": output, **inputs_of(WeightWidget)}}

    @with_gradients
    def run(self, clip_vision_output: Any, **widgets: Any) -> tuple[tuple[Part, ...]]:
        """Return the target, of which each embedding of the batch is a part."""
        weight = WeightWidget(**widgets).weight
        output = need(clip_vision_output, "clip_vision_output", "connect CLIP Vision Encode")
        embeddings = output.image_embeds.detach().clone().float()
        if embeddings.ndim != 2 or not len(embeddings):
            raise ClipagError(
                f"`clip_vision_output` has the shape {tuple(embeddings.shape)}: connect image "
                "embeddings, (B, D)."
            )
        return (tuple(Part(each, weight / len(embeddings)) for each in embeddings),)


class CombineTargets:
    """Two targets as one."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Two targets at once, each with a weight. Chain this node for more. A target of weight 0 "
        "is left out."
    )
    RETURN_TYPES = ("CLIPAG_TARGET",)
    RETURN_NAMES = ("target",)
    OUTPUT_TOOLTIPS = ("Both targets as one, for a node that draws.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        sockets = {
            f"target_{name}": socket("CLIPAG_TARGET", "What the picture should be like.")
            for name in "ab"
        }
        return {"required": {**sockets, **inputs_of(CombineWidgets)}}

    def run(
        self, target_a: Sequence[Part], target_b: Sequence[Part], **widgets: Any
    ) -> tuple[tuple[Part, ...]]:
        """Return the parts of both, with the products of the weights."""
        chosen = CombineWidgets(**widgets)
        pairs = (("target_a", target_a, chosen.weight_a), ("target_b", target_b, chosen.weight_b))
        parts = tuple(
            replace(part, weight=weight * part.weight)
            for name, target, weight in pairs
            for part in need(target, name, "connect a target")
            if weight
        )
        if not parts:
            raise ClipagError("`weight_a` and `weight_b` are 0: choose another weight for one.")
        return (parts,)
