"""The Gumbel VQGAN, for older builds of taming-transformers that lack it.

It has only what drawing needs: the relaxation of Jang et al. (2017) in its limit, which chooses one
code for each place, and the parameter names of published checkpoints.
"""

from typing import Any

from taming.models.vqgan import VQModel
from torch import Tensor, nn


class GumbelQuantize(nn.Module):
    """Chooses the code with the largest logit for each place.

    Args:
        width: number of input channels.
        embed_dim: length of a code.
        n_embed: number of codes.
    """

    def __init__(self, width: int, embed_dim: int, n_embed: int):
        super().__init__()
        self.n_embed = n_embed
        self.proj = nn.Conv2d(width, n_embed, 1)
        self.embed = nn.Embedding(n_embed, embed_dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Return codes (B, embed_dim, h, w), a loss of zero, and the numbers of the codes."""
        codes = self.proj(z).argmax(dim=1)
        return self.embed(codes).movedim(3, 1), z.new_zeros(()), (None, None, codes)

    def get_codebook_entry(self, codes: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Return the codes with these numbers as (B, embed_dim, h, w); `shape` is (B, h, w, C)."""
        batch, height, width, _ = shape
        entries: Tensor = self.embed(codes.reshape(batch, height, width))
        return entries.movedim(3, 1)


class GumbelVQ(VQModel):  # type: ignore[misc]
    """A VQGAN that chooses its codes by logits. This class draws and cannot be trained."""

    def __init__(
        self,
        ddconfig: Any,
        lossconfig: Any,
        n_embed: int,
        embed_dim: int,
        temperature_scheduler_config: Any = None,
        ckpt_path: str | None = None,
        kl_weight: float = 1e-8,
    ):
        super().__init__(ddconfig, lossconfig, n_embed, embed_dim)
        self.quantize = GumbelQuantize(ddconfig["z_channels"], embed_dim, n_embed)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path)

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """Return the quantiser's input for images (B, 3, H, W) in [-1, 1]."""
        latent: Tensor = self.quant_conv(self.encoder(x))
        return latent

    def training_step(self, *_: Any) -> Tensor:
        """Refuse to train: this class only draws."""
        raise NotImplementedError(
            "This GumbelVQ only draws: to train one, install a newer taming-transformers."
        )
