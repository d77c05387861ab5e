"""CLIP with a vision transformer, part for part as OpenAI's scripts expect it.

Names, shapes and the (length, batch, width) order between blocks are those that old
scripts hook, slice and re-run (`model.visual.transformer.resblocks[i]`,
`model.transformer(x.permute(1, 0, 2))`): open_clip's own blocks are batch-first and get
their causal mask from outside, so such scripts would silently compute something else.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ClipagError
from .model import ClipagModel, resample


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32, whatever the precision around it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised over its last axis, in its own shape and type."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation, of x's shape."""
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block over (length, batch, d_model).

    Args:
        d_model: width.
        n_head: number of attention heads.
        attn_mask: (length, length), added to the attention's logits.
        mlp_width: width inside the MLP, by default four times `d_model`.
        quick_gelu: which activation the MLP has.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        quick_gelu: bool = True,
    ):
        super().__init__()
        mlp_width = mlp_width or 4 * d_model
        # OpenAI's code defines attention first, open_clip's its norm: where a state dict has
        # lost all else, that order says which activation the weights want.
        if quick_gelu:
            self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        if not quick_gelu:
            self.attn = nn.MultiheadAttention(d_model, n_head)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(d_model, mlp_width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(mlp_width, d_model),
            )
        )
        self.ln_2 = LayerNorm(d_model)
        self.attn_mask = attn_mask

    def attention(self, x: Tensor) -> Tensor:
        """Return what every position takes from the others, of x's shape."""
        mask = None
        if self.attn_mask is not None:
            self.attn_mask = self.attn_mask.to(x.device, x.dtype)  # once, not every call
            mask = self.attn_mask[: len(x), : len(x)]
        y: Tensor = self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Return (length, batch, d_model) features of the same shape."""
        x = x + self.attention(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """A stack of blocks over (length, batch, width); the arguments are a block's."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        quick_gelu: bool = True,
    ):
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(
            *(
                ResidualAttentionBlock(
                    width, heads, attn_mask, mlp_width=mlp_width, quick_gelu=quick_gelu
                )
                for _ in range(layers)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (length, batch, width) features of the same shape."""
        y: Tensor = self.resblocks(x)
        return y


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
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        positions = (input_resolution // patch_size) ** 2 + 1
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(positions, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(
            width, layers, heads, mlp_width=mlp_width, quick_gelu=quick_gelu
        )
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (B, output_dim), not normalised."""
        x = self.conv1(resample(x, self.input_resolution)).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.ln_pre(x).transpose(0, 1)
        x = self.transformer(x)[0]
        embedding: Tensor = self.ln_post(x) @ self.proj.to(x.dtype)
        return embedding


class CLIP(ClipagModel):
    """Vision transformer and text transformer, with OpenAI's constructor.

    The arguments behind the star are not OpenAI's: open_clip's models differ in them.

    Raises:
        ClipagError: `vision_layers` is a tuple, which is a ResNet: `build_model` makes those.
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
        *,
        vision_heads: int | None = None,
        vision_mlp_width: int | None = None,
        transformer_mlp_width: int | None = None,
        quick_gelu: bool = True,
        name: str = "CLIP",
        config: dict[str, Any] | None = None,
    ):
        if not isinstance(vision_layers, int):
            raise ClipagError(
                f"vision_layers is {vision_layers!r}, a ResNet's: build it with "
                "clip.model.build_model(state_dict)."
            )
        visual = VisionTransformer(
            image_resolution,
            vision_patch_size,
            vision_width,
            vision_layers,
            vision_heads or max(1, vision_width // 64),
            embed_dim,
            mlp_width=vision_mlp_width,
            quick_gelu=quick_gelu,
        )
        # The temperature that CLIP's training starts from is 0.07.
        super().__init__(name, visual, 2.6593, context_length, vocab_size, config or {})
        self.quick_gelu = quick_gelu
        self.transformer = Transformer(
            transformer_width,
            transformer_layers,
            transformer_heads,
            self.build_attention_mask(),
            mlp_width=transformer_mlp_width,
            quick_gelu=quick_gelu,
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.positional_embedding = nn.Parameter(
            0.01 * torch.randn(context_length, transformer_width)
        )
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(
            transformer_width**-0.5 * torch.randn(transformer_width, embed_dim)
        )

    def build_attention_mask(self) -> Tensor:
        """Return (context_length, context_length): no position attends to a later one."""
        # On the CPU even where the weights are yet on the meta device: it is no weight.
        shape = (self.context_length, self.context_length)
        return torch.full(shape, float("-inf"), device="cpu").triu_(1)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the image tower, as OpenAI's."""
        dtype: torch.dtype = self.visual.conv1.weight.dtype
        return dtype

    def encode_text(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, of (B, 77) integer tokens."""
        x = self.token_embedding(text).to(self.dtype) + self.positional_embedding.to(self.dtype)
        x = self.ln_final(self.transformer(x.transpose(0, 1)).transpose(0, 1))
        # The end-of-text token has the highest number.
        x = x[torch.arange(len(x), device=x.device), text.argmax(dim=-1)]
        embedding: Tensor = x @ self.text_projection.to(x.dtype)
        return embedding

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights under OpenAI's names; the metadata remembers the activation."""
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
