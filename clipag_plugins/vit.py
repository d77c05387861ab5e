"""CLIP with a vision transformer, built from the same parts as OpenAI's.

Old scripts hook, slice and re-run these parts (`model.visual.transformer.resblocks[i]`,
`model.transformer(x.permute(1, 0, 2))`). So names, shapes and the (length, batch, width) order
between blocks are OpenAI's. With open_clip's blocks, which are batch-first and get their causal
mask as an argument, such scripts would silently compute something else.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ClipagModel, is_traced, resample
from .errors import ClipagError


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that sums in float32, whatever type its input has."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x over its last axis; return the same shape and type."""
        # If both types are equal, torch sums in float32 by itself, and no copy is needed.
        wide = x if self.weight.dtype == x.dtype else x.float()
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Attention(nn.MultiheadAttention):
    """Attention over (length, batch, width), with a fast path for attention within a sequence.

    Guidance runs that path hundreds of times: few large matrix products and a fused kernel.
    Weights, hooks and every rarer use are those of torch's module.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention; arguments and results are those of `nn.MultiheadAttention`."""
        rare = key is not value or query.ndim != 3 or key_padding_mask is not None or is_causal
        if rare or need_weights:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        if query is key:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=2)
        else:
            width = self.embed_dim
            q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
            k, v = F.linear(
                key, self.in_proj_weight[width:], self.in_proj_bias[width:]
            ).chunk(2, dim=2)  # fmt: skip
        # Views of shape (batch, heads, length, width of a head): the kernel takes any strides.
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        y = y.permute(2, 0, 1, 3).flatten(2)
        return F.linear(y, self.out_proj.weight, self.out_proj.bias), None


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


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x · sigmoid(1.702 x), of x's shape."""
        return F.silu(1.702 * x) / 1.702  # silu is one kernel, forward and backward


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block over (length, batch, d_model).

    Args:
        d_model: width.
        n_head: number of attention heads.
        attn_mask: (length, length), added to the attention's logits.
        mlp_width: width inside the MLP, by default four times `d_model`.
        quick_gelu: whether the MLP's activation is QuickGELU instead of GELU.
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
        # OpenAI's code defines attention first, open_clip's the norm. `architecture.from_state`
        # reads the activation from that order if nothing else in a state dict tells it.
        if quick_gelu:
            self.attn = Attention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        if not quick_gelu:
            self.attn = Attention(d_model, n_head)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(d_model, mlp_width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(mlp_width, d_model),
            )
        )
        self.ln_2 = LayerNorm(d_model)
        self.attn_mask = attn_mask

    def attention(self, x: Tensor, count: int | None = None) -> Tensor:
        """Return attention's output at the first `count` positions, or at all, over all of x."""
        mask = None
        if self.attn_mask is not None:
            full_mask = self.attn_mask.to(x.device, x.dtype)
            if not is_traced():
                self.attn_mask = full_mask  # converted once, not in every call
            mask = full_mask[: x.shape[0], : x.shape[0]][:count]
        queries = x if count is None else x[:count]
        y: Tensor = self.attn(queries, x, x, need_weights=False, attn_mask=mask)[0]
        return y

    def forward(self, x: Tensor, count: int | None = None) -> Tensor:
        """Return (length, batch, d_model) features of the first `count` positions, or of all."""
        x = x[:count] + self.attention(self.ln_1(x), count)
        x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """A stack of blocks over (length, batch, width).

    Args:
        width: of the features.
        layers: number of blocks.
        heads, attn_mask, mlp_width, quick_gelu: as for `ResidualAttentionBlock`.
    """

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
        """Return features of the same shape, (length, batch, width)."""
        y: Tensor = self.resblocks(x)
        return y

    def first_position(self, x: Tensor) -> Tensor:
        """Return `forward(x)[:1]`. The last block computes no other position."""
        *blocks, last = self.resblocks
        # Hooks and replaced methods must get every position.
        watched = any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or "forward" in vars(m)
            for m in self.modules()
        )
        if watched or not isinstance(last, ResidualAttentionBlock):
            features: Tensor = self(x)
            return features[:1]
        for block in blocks:
            x = block(x)
        y: Tensor = last(x, count=1)
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
        self.conv1 = PatchEmbedding(3, width, patch_size, stride=patch_size, bias=False)
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
        x = self.conv1(resample(x, self.input_resolution)).flatten(2).permute(2, 0, 1)
        class_token = self.class_embedding.to(x.dtype).expand(1, x.shape[1], -1)
        x = torch.cat([class_token, x]) + self.positional_embedding.to(x.dtype)[:, None]
        x = self.ln_pre(x)
        x = self.transformer.first_position(x)[0]
        embedding: Tensor = self.ln_post(x) @ self.proj.to(x.dtype)
        return embedding


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
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(shape.context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, shape.embed_dim))

    def build_attention_mask(self) -> Tensor:
        """Return a (context_length, context_length) mask: no position attends to a later one."""
        # On the CPU even if the model is built on the meta device: no state dict holds the mask.
        shape = (self.context_length, self.context_length)
        return torch.full(shape, float("-inf"), device="cpu").triu_(1)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the image tower, as in OpenAI's class."""
        dtype: torch.dtype = self.visual.conv1.weight.dtype
        return dtype

    def encode_text(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, of (B, 77) integer tokens."""
        x = self.token_embedding(text).to(self.dtype) + self.positional_embedding.to(self.dtype)
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
