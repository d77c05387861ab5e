"""CLIP with a vision transformer, built from the same parts as OpenAI's (transformer.py)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ClipagModel, resample
from .errors import ClipagError
from .transformer import LayerNorm, Transformer, initialize_text_parameters


class PatchEmbedding(nn.Conv2d):
    """Convolution with stride equal to kernel size, computed as one matrix product over patches."""

    def forward(self, input: Tensor) -> Tensor:
        """Return features (B, width, H / patch, W / patch) of images (B, 3, H, W)."""
        b, c, h, w = input.shape
        p = self.kernel_size[0]
        if h % p or w % p:
            return super().forward(input)
        patches = input.view(b, c, h // p, p, w // p, p).permute(2, 4, 0, 1, 3, 5)
        patches = patches.reshape(h // p, w // p, b, c * p * p)
        features: Tensor = F.linear(patches, self.weight.flatten(1)).permute(2, 3, 0, 1)
        return features


class VisionTransformer(nn.Module):
    """Image tower: (B, 3, H, W), normalised, to (B, output_dim).

    Sides other than `input_resolution` are resampled first.
    """

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        *,
        mlp_width: int | None = None,
        quick_gelu: bool = True,
    ):
        super().__init__()
        self.input_resolution = self.native_size = input_resolution
        self.patch_size = patch_size
        self.output_dim = output_dim
        self.conv1 = PatchEmbedding(3, width, patch_size, stride=patch_size, bias=False)
        positions = (input_resolution // patch_size) ** 2 + 1
        scale = width**-0.5
        self.class_embedding = _drawn(scale, width)
        self.positional_embedding = _drawn(scale, positions, width)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(
            width, layers, heads, mlp_width=mlp_width, quick_gelu=quick_gelu
        )
        self.ln_post = LayerNorm(width)
        self.proj = _drawn(scale, width, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (B, output_dim), not normalised."""
        x = self.conv1(resample(x, self.input_resolution)).flatten(2).permute(2, 0, 1)
        class_token = self.class_embedding.to(x.dtype).expand(1, x.shape[1], -1)
        x = torch.cat([class_token, x]) + self.positional_embedding.to(x.dtype)[:, None]
        x = self.ln_pre(x)
        x = self.transformer.first_position(x)[0]
        embedding: Tensor = self.ln_post(x) @ self.proj.to(x.dtype)
        return embedding


def _drawn(deviation: float, *shape: int) -> nn.Parameter:
    """Return normally distributed weights. (A product imports the compiler on the meta device.)"""
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=deviation))


@dataclass(frozen=True)
class Shape:
    """The arguments of OpenAI's constructor, and those that models of open_clip's need beside them.

    Attributes:
        vision_heads: attention heads of the image tower; None for one per 64 channels.
        vision_mlp_width: width inside its MLPs; None for four times the tower's width.
        transformer_mlp_width: the same in the text tower.
        quick_gelu: whether the activation is QuickGELU instead of GELU.
    """

    embed_dim: int
    image_resolution: int
    vision_layers: int
    vision_width: int
    vision_patch_size: int
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int
    vision_heads: int | None = None
    vision_mlp_width: int | None = None
    transformer_mlp_width: int | None = None
    quick_gelu: bool = True


class CLIP(ClipagModel):
    """Vision transformer and text transformer, with OpenAI's constructor.

    `from_shape` builds the variants of open_clip.

    Raises:
        ClipagError: `vision_layers` is a tuple, as for a ResNet: `build_model` builds ResNets.
    """

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int,
        vision_width: int,
        vision_patch_size: int,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
    ):
        if not isinstance(vision_layers, int):
            raise ClipagError(
                f"`vision_layers` is {vision_layers!r}, a ResNet's: build it with "
                "clip.model.build_model(state_dict)."
            )
        shape = Shape(
            embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size,
            context_length, vocab_size, transformer_width, transformer_heads, transformer_layers,
        )  # fmt: skip
        self._build(shape, "CLIP", {})

    @classmethod
    def from_shape(cls, shape: Shape, name: str, config: dict[str, Any]) -> "CLIP":
        """Build a model, untrained.

        Args:
            shape: sizes and activation.
            name: the model's name.
            config: the same as an open_clip `model_cfg`.
        """
        model = cls.__new__(cls)
        model._build(shape, name, config)
        return model

    def _build(self, shape: Shape, name: str, config: dict[str, Any]) -> None:
        width, quick_gelu = shape.transformer_width, shape.quick_gelu
        visual = VisionTransformer(
            shape.image_resolution,
            shape.vision_patch_size,
            shape.vision_width,
            shape.vision_layers,
            shape.vision_heads or max(1, shape.vision_width // 64),
            shape.embed_dim,
            mlp_width=shape.vision_mlp_width,
            quick_gelu=quick_gelu,
        )
        # CLIP's training starts from the temperature 0.07; its logarithm, negated, is 2.6593.
        super().__init__(name, visual, 2.6593, shape.context_length, shape.vocab_size, config)
        self.quick_gelu = quick_gelu
        self.transformer = Transformer(
            width,
            shape.transformer_layers,
            shape.transformer_heads,
            self.build_attention_mask(),
            mlp_width=shape.transformer_mlp_width,
            quick_gelu=quick_gelu,
        )
        self.token_embedding = nn.Embedding(shape.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(shape.context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, shape.embed_dim))
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Draw the text tower's weights anew, as OpenAI's constructor does."""
        initialize_text_parameters(self)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the image tower, as in OpenAI's class."""
        dtype: torch.dtype = self.visual.conv1.weight.dtype
        return dtype

    def encode_text(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, of (B, ≤ 77) integer tokens."""
        positions = self.positional_embedding[: text.shape[1]].to(self.dtype)
        x = self.token_embedding(text).to(self.dtype) + positions
        x = self.ln_final(self.transformer(x.transpose(0, 1)).transpose(0, 1))
        # The end-of-text token has the highest number of all tokens.
        # Not len(x): a trace would freeze it.
        x = x[torch.arange(x.shape[0], device=x.device), text.argmax(dim=-1)]
        embedding: Tensor = x @ self.text_projection.to(x.dtype)
        return embedding

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights under OpenAI's names, and record the activation in the metadata."""
        state = super().state_dict(*args, **kwargs)
        state._metadata[kwargs.get("prefix", "")[:-1]]["quick_gelu"] = self.quick_gelu
        return state


def convert_weights(model: nn.Module) -> None:
    """Make the matrices half precision in place, as OpenAI's `convert_weights` does."""
    if not isinstance(model, CLIP):
        model.half()
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            module.half()
    for parameter in (model.visual.proj, model.text_projection):
        parameter.data = parameter.data.half()
