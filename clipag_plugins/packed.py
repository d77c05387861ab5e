"""Matrix products with weights that never change, stored in the layout that the processor reads.

torch's bfloat16 product on a CPU rearranges the weights at every call. For few rows that takes as
long as a quarter of the product. Here it is done once, for the forward and for the backward pass.
Results are the same bit for bit.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

# Weights that may be packed, with the two packed copies once they are needed.
_packs: WeakIdKeyDictionary = WeakIdKeyDictionary()


def has_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16 that torch uses."""
    return torch.backends.mkldnn.is_available() and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def allow(module: nn.Module) -> None:
    """Let `linear` pack the weights of a frozen module that nobody else knows or changes."""
    # The operations are those that torch.compile uses; they have no public name.
    operations = ("_linear_pointwise", "_reorder_linear_weight")
    if has_bfloat16() and all(hasattr(torch.ops.mkldnn, name) for name in operations):
        for weight in module.parameters():
            if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.ndim == 2:
                _packs[weight] = None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `F.linear(x, weight, bias)`, from packed weights where `allow` allows it."""
    if weight not in _packs or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    packs = _packs[weight]
    if packs is None:
        pack = torch.ops.mkldnn._reorder_linear_weight
        packs = _packs[weight] = pack(weight.detach()), pack(weight.detach().t().contiguous())
    product: Tensor = _Product.apply(x, bias, *packs)
    return product


class Linear(nn.Linear):
    """A linear layer whose weights can be packed."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (…, out_features) of (…, in_features)."""
        return linear(input, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """A product with packed weights. Its backward pass is one with the transposed weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weight: Tensor, transposed: Tensor
    ) -> Tensor:
        ctx.packs = transposed, weight
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        gradient: Tensor = _Product.apply(upstream[0], None, *ctx.packs)
        return gradient, None, None, None
