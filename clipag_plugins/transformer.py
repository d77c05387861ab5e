"""The transformer of OpenAI's CLIP, in OpenAI's layout.

Old scripts hook, slice and re-run these parts (`model.visual.transformer.resblocks[i]`,
`model.transformer(x.permute(1, 0, 2))`). So names, shapes and the (length, batch, width) order
between blocks are OpenAI's. With open_clip's blocks, which are batch-first and get their causal
mask as an argument, such scripts would silently compute something else.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import packed
from .base import is_traced

# Longer sequences need more memory for their attention weights than for all else.
LONGEST_IN_PRODUCTS = 320


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
            qkv = packed.linear(query, self.in_proj_weight, self.in_proj_bias)
            q, k, v = qkv.chunk(3, dim=2)
        else:
            width = self.embed_dim
            q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
            k, v = F.linear(
                key, self.in_proj_weight[width:], self.in_proj_bias[width:]
            ).chunk(2, dim=2)  # fmt: skip
        y = attend(q, k, v, self.num_heads, attn_mask)
        return packed.linear(y, self.out_proj.weight, self.out_proj.bias), None


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Return what queries (N, batch, width) read from keys and values (L, batch, width).

    Args:
        heads: number of heads, which divide the width.
        mask: (N, L), added to the logits.

    Returns:
        (N, batch, width), before the output projection.
    """
    # Views of shape (batch, heads, length, width of a head).
    q, k, v = (x.unflatten(2, (heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))
    on_cpu, batch, length = q.device.type == "cpu", q.shape[0], k.shape[2]
    if on_cpu and q.dtype == torch.bfloat16 and length <= LONGEST_IN_PRODUCTS:
        # The backward pass of the CPU's fused kernel takes six times as long in bfloat16.
        q, k, v = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
        logits = q @ k.mT if mask is None else q @ k.mT + mask
        y: Tensor = (logits.softmax(dim=-1) @ v).unflatten(0, (batch, heads))
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.permute(2, 0, 1, 3).flatten(2)


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
                c_fc=packed.Linear(d_model, mlp_width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=packed.Linear(mlp_width, d_model),
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


def initialize_text_parameters(model: Any) -> None:
    """Draw a text tower's weights anew, as the `initialize_parameters` of OpenAI's CLIP does.

    Args:
        model: a CLIP whose text tower has OpenAI's parts.
    """
    width, layers = model.token_embedding.weight.shape[1], len(model.transformer.resblocks)
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    nn.init.normal_(model.positional_embedding, std=0.01)
    for block in model.transformer.resblocks:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    nn.init.normal_(model.text_projection, std=width**-0.5)
