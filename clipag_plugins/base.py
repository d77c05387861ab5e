"""`ClipagModel`: the interface of OpenAI's CLIP, which every kind of model here has."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from .registry import Source

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
INPUT_RESOLUTION = 224
is_jit_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture of any shape becomes a square, in the words of open_clip's `preprocess_cfg`.

    Guidance is unaffected: its images are square.

    Attributes:
        resize_mode: "shortest" crops what is too long, "longest" pads what is too short, and
            "squash" keeps all and changes the aspect ratio.
        interpolation: "bicubic" or "bilinear"; "random", of training, is bicubic.
        fill_color: of the padding, from 0 to 255.
    """

    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_color: int = 0


OPENAIS = Preprocessing()


def resample(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize images (B, 3, H, W) to a side, or to (height, width), with antialiasing."""
    size = (size, size) if isinstance(size, int) else size
    if image.shape[-2:] == size:
        return image
    # In float32: antialiasing is not implemented for half precision on the CPU.
    resized = F.interpolate(image.float(), size=size, mode="bilinear", antialias=True)
    return resized.to(image.dtype)


def is_traced() -> bool:
    """Return whether torch records this computation (trace, export, compile) to repeat it later.

    What is recorded must not depend on the values in the example input.
    """
    return is_jit_tracing() or torch.compiler.is_compiling()


def _part(tower: nn.Module, name: str) -> Any:
    """Return a part of a tower; if there is none, say which models have the parts of OpenAI's."""
    if not hasattr(tower, name):
        raise AttributeError(
            f"{type(tower).__name__} has no {name!r}. Code that reaches inside OpenAI's towers "
            "needs weights of that architecture, most often a ViT's: name them to clip.load, or "
            "to clipag run as --model."
        )
    return getattr(tower, name)


class _GradientInInputLayout(torch.autograd.Function):
    """The identity, whose gradient has the memory layout of its input.

    A channels-last tower returns a channels-last gradient, which `.view` in other people's attacks
    (torchattacks' PGDL2, robustness' L2 step) does not accept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.is_contiguous = x.is_contiguous()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return gradient.contiguous() if ctx.is_contiguous else gradient


class ImageTower(nn.Module):
    """An image encoder that takes CLIP's 224 × 224 input and resizes it to its native side.

    Args:
        tower: maps (B, 3, native_size, native_size) to (B, output_dim).
        native_size: the side that `tower` works at.
        output_dim: width of the embedding.
    """

    def __init__(self, tower: nn.Module, native_size: int, output_dim: int):
        super().__init__()
        self.native_size = native_size
        self.output_dim = output_dim
        self.input_resolution = INPUT_RESOLUTION
        self.tower = tower

    def __getattr__(self, name: str) -> Any:
        """Find parts in the wrapped tower, so that `visual.layer4` works as on OpenAI's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "tower":  # not set yet
                raise
            return _part(self.tower, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Replace parts in the wrapped tower, so that `visual.attnpool = …` has its effect."""
        tower = vars(self).get("_modules", {}).get("tower")
        if isinstance(getattr(tower, name, None), nn.Module | Tensor):
            setattr(tower, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings (B, output_dim), not normalised, of normalised images."""
        # A trace that calls Python cannot be saved.
        if image.requires_grad and not is_jit_tracing():
            image = _GradientInInputLayout.apply(image)
        embedding: Tensor = self.tower(resample(image, self.native_size))
        return embedding


class ClipagModel(nn.Module, ABC):
    """A CLIP with OpenAI's interface. Its subclasses differ in their towers only.

    Args:
        name: the model's name in messages and in picture metadata.
        visual: the image tower, with `input_resolution`, `native_size` and `output_dim`.
        logit_scale: logarithm of the inverse temperature.
        context_length: number of text positions.
        vocab_size: number of BPE tokens.
        config: the architecture, as an `open_clip_config.json` has it under `model_cfg`.
    """

    visual: Any  # its parts differ between subclasses
    preprocessing: Preprocessing = OPENAIS
    source: "Source | None" = None  # of models that have a name in `registry.MODELS`

    def __init__(
        self,
        name: str,
        visual: nn.Module,
        logit_scale: float,
        context_length: int,
        vocab_size: int,
        config: dict[str, Any],
    ):
        super().__init__()
        self.name = name
        self.visual = visual
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)))
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.config = config

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

        `image` is (B, 3, H, W), normalised with CLIP's mean and standard deviation. Other sides
        than the tower's own are resized inside.
        """
        embedding: Tensor = self.visual(image.to(self.dtype))
        return embedding

    @abstractmethod
    def encode_text(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, of (B, 77) integer tokens."""

    def encode_words(self, text: Tensor) -> Tensor:
        """Return what `encode_text` returns, without the memory of pictures (`mini.Memory`).

        Only the embedded models have such a memory.
        """
        return self.encode_text(text)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits_per_image, logits_per_text), as OpenAI's CLIP does."""
        z_image = F.normalize(self.encode_image(image), dim=-1)
        z_text = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * z_image @ z_text.t()
        return logits, logits.t()

    def build_attention_mask(self) -> Tensor:
        """Return a (context_length, context_length) mask: no position attends to a later one."""
        # On the CPU even if the model is built on the meta device: no state dict holds the mask.
        shape = (self.context_length, self.context_length)
        return torch.full(shape, float("-inf"), device="cpu").triu_(1)

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict under the names that `save_pretrained` writes."""
        return self.state_dict()

    @classmethod
    def from_pretrained(
        cls,
        repo_or_dir: str | Path,
        revision: str | None = None,
        *,
        device: str | torch.device = "cpu",
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
    ) -> "ClipagModel":
        """Load a repository of the Hugging Face Hub, or a folder laid out like one.

        Args:
            repo_or_dir: "owner/name" or a folder, with `open_clip_config.json` and
                `open_clip_model.safetensors`, or what `save_pretrained` wrote.
            revision: branch, tag or commit of the repository.
            device: where the model goes.
            cache_dir: instead of the Hub's own cache.
            token: instead of the one that `hf auth login` or `HF_TOKEN` gave.

        Raises:
            ClipagError: it cannot be fetched, or its files are not a CLIP's.
        """
        from . import hub

        model = hub.from_pretrained(str(repo_or_dir), revision, cache_dir, token)
        return model.to(device).eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, config and model card to a folder, which is made if it is missing.

        open_clip can load the result of all but the embedded models:
        `open_clip.create_model_from_pretrained("local-dir:FOLDER")`.
        """
        from . import publish

        return publish.save_pretrained(self, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload weights, config and model card",
        revision: str | None = None,
        private: bool = False,
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> str:
        """Save to a repository of the Hub, made if it is missing; return the commit's address.

        Raises:
            ClipagError: the Hub refuses, or cannot be reached.
        """
        from . import publish

        return publish.push_to_hub(
            self, repo_id, commit_message, revision, private, create_pr, token
        )


class TwoTowers(ClipagModel):
    """A CLIP whose image tower and text tower are two separate modules.

    Args:
        text: maps (B, context_length) integer tokens to (B, embed_dim).
        name, visual, logit_scale, context_length, vocab_size, config: as for `ClipagModel`.
    """

    def __init__(
        self,
        name: str,
        visual: ImageTower,
        text: nn.Module,
        logit_scale: float,
        context_length: int,
        vocab_size: int,
        config: dict[str, Any],
    ):
        super().__init__(name, visual, logit_scale, context_length, vocab_size, config)
        self.text = text

    def __getattr__(self, name: str) -> Any:
        """Find parts in the text tower, so that `model.token_embedding` works as on OpenAI's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "text":  # not set yet
                raise
            return _part(self.text, name)

    def encode_text(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, of (B, 77) integer tokens."""
        embedding: Tensor = self.text(text)
        return embedding


def normalize(images: Tensor) -> Tensor:
    """Apply CLIP's mean and standard deviation to (B, 3, H, W) images in [0, 1]."""
    mean = images.new_tensor(CLIP_MEAN).view(3, 1, 1)
    std = images.new_tensor(CLIP_STD).view(3, 1, 1)
    return (images - mean) / std


def embed_images(model: ClipagModel, images: Tensor) -> Tensor:
    """Return unit-length embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
    return F.normalize(model.encode_image(normalize(images)), dim=-1)


def transform(side: int, how: Preprocessing = OPENAIS) -> Callable[[Any], Tensor]:
    """Return the transform from a PIL image to a model's input, (3, side, side) float32.

    By default it is OpenAI's: it resizes the shorter side, crops the centre, and normalises with
    CLIP's mean and standard deviation.
    """
    if how != OPENAIS:
        import open_clip

        return open_clip.image_transform(  # type: ignore[no-any-return]
            side, is_train=False, mean=CLIP_MEAN, std=CLIP_STD, resize_mode=how.resize_mode,
            interpolation=how.interpolation, fill_color=how.fill_color,
        )  # fmt: skip
    from torchvision import transforms

    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            convert_to_rgb,
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )


def convert_to_rgb(image: Any) -> Any:
    """Return a PIL image in RGB."""
    return image.convert("RGB")
