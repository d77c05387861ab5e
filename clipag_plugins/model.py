"""`load_clipag()` and `ClipagModel`: OpenAI CLIP's API over robust weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
INPUT_RESOLUTION = 224


class ImageTower(nn.Module):
    """An image encoder that takes CLIP's 224 × 224 input, whatever its native side is.

    Args:
        tower: maps (B, 3, native_size, native_size) to (B, output_dim).
        native_size: the side that `tower` works at.
        output_dim: width of the embedding.
    """

    def __init__(self, tower: nn.Module, native_size: int, output_dim: int):
        super().__init__()
        self.tower = tower
        self.native_size = native_size
        self.output_dim = output_dim
        self.input_resolution = INPUT_RESOLUTION

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings (B, output_dim), not normalised, of normalised images."""
        size = (self.native_size, self.native_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        embedding: Tensor = self.tower(image)
        return embedding


class ClipagModel(nn.Module):
    """A CLIP with OpenAI's interface.

    Args:
        name: what the model is called in messages and picture metadata.
        visual: the image tower.
        text: maps (B, context_length) int64 tokens to (B, embed_dim).
        logit_scale: logarithm of the inverse temperature.
        context_length: number of text positions.
        vocab_size: number of BPE tokens.
    """

    def __init__(
        self,
        name: str,
        visual: ImageTower,
        text: nn.Module,
        logit_scale: float,
        context_length: int,
        vocab_size: int,
    ):
        super().__init__()
        self.name = name
        self.visual = visual
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        self.context_length = context_length
        self.vocab_size = vocab_size

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.logit_scale.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.logit_scale.device

    def encode_image(self, image: Tensor) -> Tensor:
        """Return image embeddings (B, embed_dim), not normalised.

        `image` is (B, 3, H, W), normalised with CLIP's mean and standard deviation;
        sides other than the tower's own are resampled inside.
        """
        embedding: Tensor = self.visual(image.to(self.dtype))
        return embedding

    def encode_text(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, of (B, 77) int64 tokens."""
        embedding: Tensor = self.text(text)
        return embedding

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits_per_image, logits_per_text), as OpenAI's CLIP does."""
        z_image = F.normalize(self.encode_image(image), dim=-1)
        z_text = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * z_image @ z_text.t()
        return logits, logits.t()


def normalize(images: Tensor) -> Tensor:
    """Apply CLIP's mean and standard deviation to (B, 3, H, W) images in [0, 1]."""
    mean = images.new_tensor(CLIP_MEAN).view(3, 1, 1)
    std = images.new_tensor(CLIP_STD).view(3, 1, 1)
    return (images - mean) / std


def preprocess(image: Any) -> Tensor:
    """Turn a PIL image into a model's input, (3, 224, 224) float32, as OpenAI's transform does."""
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.Resize(INPUT_RESOLUTION, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(INPUT_RESOLUTION),
            v2.Lambda(lambda picture: picture.convert("RGB")),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    result: Tensor = transform(image)
    return result


def available_models() -> list[str]:
    """Return the names that `load_clipag` knows."""
    from . import hub

    return list(hub.MODELS)


def load(
    name: str | Path = "clipag-mini", device: str | torch.device = "cpu"
) -> tuple[ClipagModel, Callable[[Any], Tensor]]:
    """Load a model and its preprocessing, as OpenAI's `clip.load` returns them."""
    return load_clipag(name, device), preprocess


def load_clipag(
    name: str | Path = "clipag-mini", device: str | torch.device = "cpu"
) -> ClipagModel:
    """Load a CLIPAG, frozen and in eval mode.

    Args:
        name: a name of `available_models()`, or the path of a weights file: an OpenCLIP
            `ViT-B-32` state dict as `.safetensors` or `.pt`.
        device: where the model goes.

    Raises:
        ClipagError: the name is unknown, or the file is not such a model.
    """
    from . import hub

    return hub.load(name).to(device).eval().requires_grad_(False)
