"""The image towers of `clip-lite` and `clipag-lite`: two that look at one picture.

A coarse tower of 48 × 48 pixels knows the shapes and colours that its captions had in training. A
fine one of 128 × 128 pixels, EfficientNet-Lite0, knows edges, textures and ImageNet's classes. An
embedding is the two towers' embeddings side by side, each of a fixed length. So the cosine of an
image and a text is a weighted mean of both towers' cosines, and one gradient draws both shapes and
details.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import resample

# Share of the coarse tower in the cosine. Chosen on captions and classes that no figure uses: of
# 16 each, with shares of 1/2, 1/3 and 1/4, the judge named 7, 10 and 8, and 3, 5 and 5.
COARSE_SHARE = 1 / 3


def side_by_side(coarse: Tensor, fine: Tensor) -> Tensor:
    """Return the embeddings (B, 2 D), of unit length, of halves (B, D) of any length."""
    coarse = F.normalize(coarse, dim=1) * COARSE_SHARE**0.5
    return torch.cat([coarse, F.normalize(fine, dim=1) * (1 - COARSE_SHARE) ** 0.5], dim=1)


class TwoScaleImageTower(nn.Module):
    """A coarse and a fine image tower, (B, 3, S, S) → (B, 2 D).

    Args:
        coarse, fine: towers of D-dimensional embeddings.
        coarse_side: what the coarse tower's images are resized to.
    """

    def __init__(self, coarse: nn.Module, fine: nn.Module, coarse_side: int):
        super().__init__()
        self.coarse, self.fine, self.coarse_side = coarse, fine, coarse_side

    def embed_coarse(self, x: Tensor) -> Tensor:
        """Return the coarse tower's embeddings (B, D), of unit length."""
        return F.normalize(self.coarse(resample(x, self.coarse_side)), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return image embeddings (B, 2 D), of unit length."""
        return side_by_side(self.embed_coarse(x), self.fine(x))
