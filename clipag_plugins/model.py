"""`load()`, `load_clipag()` and `ClipagModel`: OpenAI CLIP's API over robust weights."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from .hub import Source
    from .mini import MiniTextTower

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
INPUT_RESOLUTION = 224


def resample(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bring images (B, 3, H, W) to a side, or to (height, width); if they are, they pass."""
    size = (size, size) if isinstance(size, int) else size
    if image.shape[-2:] == size:
        return image
    # In float32: antialiasing has no half precision on the CPU.
    resized = F.interpolate(image.float(), size=size, mode="bilinear", antialias=True)
    return resized.to(image.dtype)


def _part(tower: nn.Module, name: str) -> Any:
    """Return a part of a tower, or say which models have the parts that scripts look for."""
    if not hasattr(tower, name):
        raise AttributeError(
            f"{type(tower).__name__} has no {name!r}. Code that reaches inside OpenAI's towers "
            "needs weights of that architecture, most often a ViT's: name them to clip.load, or "
            "to clipag run as --model."
        )
    return getattr(tower, name)


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

    def __getattr__(self, name: str) -> Any:
        """Reach through to the tower's own parts: `visual.layer4` works as on OpenAI's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "tower":  # not set yet
                raise
            return _part(self.tower, name)

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings (B, output_dim), not normalised, of normalised images."""
        embedding: Tensor = self.tower(resample(image, self.native_size))
        return embedding


class ClipagModel(nn.Module, ABC):
    """A CLIP with OpenAI's interface; its kinds differ in their towers alone.

    Args:
        name: what the model is called in messages and picture metadata.
        visual: the image tower, with `input_resolution`, `native_size` and `output_dim`.
        logit_scale: logarithm of the inverse temperature.
        context_length: number of text positions.
        vocab_size: number of BPE tokens.
        config: the architecture, as an `open_clip_config.json` has it under `model_cfg`.
    """

    visual: Any  # its parts differ from kind to kind
    source: "Source | None" = None  # what the model card says of a known name's weights

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

        `image` is (B, 3, H, W), normalised with CLIP's mean and standard deviation;
        sides other than the tower's own are resampled inside.
        """
        embedding: Tensor = self.visual(image.to(self.dtype))
        return embedding

    @abstractmethod
    def encode_text(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, of (B, 77) integer tokens."""

    def encode_words(self, text: Tensor) -> Tensor:
        """Return what `encode_text` does, but of the words alone: without a memory of pictures.

        Only the embedded models have such a memory (`mini.Memory`).
        """
        return self.encode_text(text)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits_per_image, logits_per_text), as OpenAI's CLIP does."""
        z_image = F.normalize(self.encode_image(image), dim=-1)
        z_text = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * z_image @ z_text.t()
        return logits, logits.t()

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
            ClipagError: it cannot be had, or its files are not such a model.
        """
        from . import hub

        model = hub.from_pretrained(str(repo_or_dir), revision, cache_dir, token)
        return model.to(device).eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, config and model card to a folder, which is made if need be.

        All but the embedded models load in plain open_clip too:
        `open_clip.create_model_from_pretrained("local-dir:FOLDER")`.
        """
        from . import hub

        return hub.save_pretrained(self, Path(folder))

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
        """Save to a repository of the Hub, made if need be, and return the commit's address.

        Raises:
            ClipagError: the Hub refuses, or cannot be reached.
        """
        from . import hub

        return hub.push_to_hub(self, repo_id, commit_message, revision, private, create_pr, token)


class TwoTowers(ClipagModel):
    """Two towers beside each other, each with its own parts.

    Args:
        name: as for `ClipagModel`, and so are the others but `text`.
        visual: the image tower.
        text: maps (B, context_length) integer tokens to (B, embed_dim).
        logit_scale: logarithm of the inverse temperature.
        context_length: number of text positions.
        vocab_size: number of BPE tokens.
        config: the architecture.
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
        """Reach through to the text tower's parts: `model.token_embedding` as on OpenAI's."""
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


class MiniClip(TwoTowers):
    """The embedded kind, of the towers of `mini`."""

    text: "MiniTextTower"

    def encode_words(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, without what they recall."""
        return self.text.words(text)


def normalize(images: Tensor) -> Tensor:
    """Apply CLIP's mean and standard deviation to (B, 3, H, W) images in [0, 1]."""
    mean = images.new_tensor(CLIP_MEAN).view(3, 1, 1)
    std = images.new_tensor(CLIP_STD).view(3, 1, 1)
    return (images - mean) / std


def embed_images(model: ClipagModel, images: Tensor) -> Tensor:
    """Return unit-length embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
    return F.normalize(model.encode_image(normalize(images)), dim=-1)


def transform(side: int) -> Callable[[Any], Tensor]:
    """Return what turns a PIL image into a model's input, (3, side, side) float32.

    It resizes, crops the centre and normalises as OpenAI's transform does.
    """
    from torchvision import transforms

    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            _convert_to_rgb,
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )


def _convert_to_rgb(image: Any) -> Any:
    return image.convert("RGB")


def available_models() -> list[str]:
    """Return the names that `load` and `load_clipag` know."""
    from . import hub

    return list(hub.MODELS)


def load(
    name: str | os.PathLike[str] = "clipag-mini",
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
) -> tuple[ClipagModel, Callable[[Any], Tensor]]:
    """Load a model and its preprocessing, as OpenAI's `clip.load` does.

    Args:
        name: a name of `available_models()`, a checkpoint file, a folder, or a repository
            of the Hugging Face Hub as "owner/name".
        device: where the model goes; by default CUDA if there is one. On CUDA the weights
            are half precision, as OpenAI's are.
        jit: accepted for old scripts, with a warning: there is no TorchScript here.
        download_root: folder for downloads instead of the usual caches.

    Returns:
        The model in eval mode, and the transform from a PIL image to its input.

    Raises:
        ClipagError: the name is unknown, or the file is not such a model.
    """
    from . import hub
    from .vit import convert_weights

    if jit:
        warnings.warn("jit=True is ignored: the model is a plain torch module.", stacklevel=2)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    model = hub.load(name, download_root)
    if device.type == "cuda":
        convert_weights(model)
    model = model.to(device).eval()
    return model, transform(model.visual.input_resolution)


def load_clipag(
    name: str | Path = "clipag-mini", device: str | torch.device = "cpu"
) -> ClipagModel:
    """Load a CLIPAG, frozen, in eval mode and in float32.

    Args:
        name: what `load` takes: a name of `available_models()`, a weights file
            (`.safetensors` or `.pt`), a folder or a repository.
        device: where the model goes.

    Raises:
        ClipagError: the name is unknown, or the file is not such a model.
    """
    from . import hub

    return hub.load(name).to(device).eval().requires_grad_(False)


def build_model(state_dict: Mapping[str, Tensor]) -> ClipagModel:
    """Build a CLIP from a state dict in OpenAI's names, as `clip.model.build_model` does.

    The activation is OpenAI's QuickGELU, unless the state dict came from a model of this
    package, which remembers its own. Weights come out as float32, in eval mode.

    Raises:
        ClipagError: the state dict is not a CLIP's.
    """
    from . import architecture

    return architecture.from_state(state_dict, "state dict", quick_gelu=True).eval()


def __getattr__(name: str) -> Any:
    """Find the rest of OpenAI's `clip.model` for `import clipag_plugins as clip`."""
    if name in ("CLIP", "convert_weights"):
        from . import vit

        return getattr(vit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
