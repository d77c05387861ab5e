"""A small decoder P(x | z_i): a diffusion model of pictures of an image embedding.

unCLIP's decoder (Ramesh et al., 2022, section 2.1) adds the embedding to that of the timestep,
which is what diffusers' "projection" of class labels does. This one sees a sketch as well: a
thumbnail that a perceptron makes of the embedding, as unCLIP's upsamplers see a smaller picture. So
a convolutional network of some million parameters need not learn the layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..defaults import DECODER_STEPS
from ..errors import ClipagError, library

TRAINING_STEPS = 1000
MOST_WEIGHT = 5.0  # of a prediction's squared error
GUIDANCE = 2.0
NORM_GROUPS = 16
HEAD_WIDTH = 16
SKETCH_WIDTH = 512  # of the perceptron's hidden layer
SKETCH_NOISE = 0.2  # deviation of what is added to standardised embeddings in its training


@dataclass(frozen=True)
class DecoderShape:
    """The shape of a decoder.

    Attributes:
        embed_dim: width of the embeddings.
        side: of the pictures in pixels.
        sketch: side of the sketch in pixels.
        channels: of each of the network's levels, from fine to coarse. All but the first have
            attention.
        patch: pixels of a side that are one position of the finest level.

    Raises:
        ClipagError: a value is impossible.
    """

    embed_dim: int
    side: int = 48
    sketch: int = 12
    channels: tuple[int, ...] = (32, 64, 96)
    patch: int = 2

    def __post_init__(self) -> None:
        for name in ("embed_dim", "side", "sketch", "patch"):
            value = getattr(self, name)
            if not (type(value) is int and 1 <= value <= 65_536):
                raise ClipagError(f"`{name}` is {value!r}: choose from 1 to 65536.")
        if not self.channels or any(
            type(each) is not int or not 0 < each <= 4096 or each % NORM_GROUPS
            for each in self.channels
        ):
            raise ClipagError(
                f"`channels` is {self.channels!r}: choose multiples of {NORM_GROUPS} up to 4096."
            )
        smallest = self.patch * 2 ** (len(self.channels) - 1)
        if self.side % smallest:
            raise ClipagError(f"`side` is {self.side}: choose a multiple of {smallest}.")


def scheduler() -> Any:
    """Return diffusers' DDIM scheduler with the cosine schedule, for predictions of the picture.

    A network whose positions are patches has few channels for each pixel. Pictures pass through
    them, but noise does not, so it predicts pictures.

    Raises:
        ClipagError: diffusers is not installed.
    """
    return library("diffusers", "diffusers").DDIMScheduler(
        TRAINING_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="sample"
    )


@cache
def _noising() -> Any:
    return scheduler()


class Sketch(nn.Module):
    """Makes thumbnails of standardised embeddings: a linear map and a perceptron beside it.

    Args:
        embed_dim: width of the embeddings.
        side: of the thumbnails in pixels.
    """

    def __init__(self, embed_dim: int, side: int):
        super().__init__()
        self.side = side
        self.straight = nn.Linear(embed_dim, 3 * side**2)
        self.hidden = nn.Linear(embed_dim, SKETCH_WIDTH)
        self.bent = nn.Linear(SKETCH_WIDTH, 3 * side**2, bias=False)
        nn.init.zeros_(self.bent.weight)

    def forward(self, z: Tensor) -> Tensor:
        """Return thumbnails (B, 3, S, S), in [-1, 1] or a little beyond, of embeddings (B, D)."""
        flat: Tensor = self.straight(z) + self.bent(F.silu(self.hidden(z)))
        return flat.view(-1, 3, self.side, self.side)


class Decoder(nn.Module):
    """Draws pictures of image embeddings by diffusion.

    Args:
        shape: its shape.

    Raises:
        ClipagError: diffusers is not installed.
    """

    def __init__(self, shape: DecoderShape):
        super().__init__()
        self.shape = shape
        levels = len(shape.channels)
        pixels = 3 * shape.patch**2
        down = ["DownBlock2D", *["AttnDownBlock2D"] * (levels - 1)]
        up = [*["AttnUpBlock2D"] * (levels - 1), "UpBlock2D"]
        self.unet: Any = library("diffusers", "diffusers").UNet2DConditionModel(
            sample_size=shape.side // shape.patch,
            in_channels=pixels + 3,
            out_channels=pixels,
            down_block_types=down,
            up_block_types=up,
            mid_block_type="UNetMidBlock2D",
            block_out_channels=shape.channels,
            layers_per_block=1,
            attention_head_dim=HEAD_WIDTH,
            norm_num_groups=NORM_GROUPS,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=shape.embed_dim,
        )
        self.sketch = Sketch(shape.embed_dim, shape.sketch)
        self.register_buffer("mean", torch.zeros(shape.embed_dim))
        self.register_buffer("deviation", torch.ones(()))
        self.mean: Tensor
        self.deviation: Tensor

    @torch.no_grad()
    def fit_statistics(self, embeddings: Tensor, images: Tensor, ridge: float = 0.03) -> None:
        """Take the embeddings' mean and deviation; fit the sketch's linear map by ridge regression.

        Args:
            embeddings: (N, D), of unit length.
            images: their pictures, (N, 3, S, S), in [0, 1].
            ridge: weight of the penalty, as a share of the number of pictures.
        """
        self.mean.copy_(embeddings.mean(dim=0))
        self.deviation.copy_((embeddings - self.mean).square().mean().sqrt())
        z = self._standard(embeddings).double()
        size = (self.shape.sketch, self.shape.sketch)
        small = F.interpolate(images, size=size, mode="area").flatten(1).double() * 2 - 1
        self.sketch.straight.bias.copy_(small.mean(dim=0))
        penalty = ridge * len(z) * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        weight = torch.linalg.solve(z.T @ z + penalty, z.T @ (small - small.mean(dim=0)))
        self.sketch.straight.weight.copy_(weight.T)

    def loss(
        self, embeddings: Tensor, images: Tensor, dropped: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean squared error of the predicted pictures, weighted by the noise.

        The weight is that of velocities, 1 / σ², up to a limit.

        Args:
            embeddings: (B, D), of unit length.
            images: (B, 3, S, S), in [0, 1].
            dropped: which embeddings are left out, (B,), for classifier-free guidance.
            generator: source of all random numbers, on the CPU.
        """
        z = torch.where(dropped[:, None], 0.0, self._standard(embeddings))
        clean = F.pixel_unshuffle(images * 2 - 1, self.shape.patch)
        # One in each of B equal parts of the schedule: the loss varies less than with free ones.
        shares = (torch.arange(len(z)) + torch.rand(len(z), generator=generator)) / len(z)
        times = (shares * TRAINING_STEPS).long().clamp(max=TRAINING_STEPS - 1).to(z.device)
        noise = torch.randn(clean.shape, generator=generator).to(z.device)
        noisy = _noising().add_noise(clean, noise, times)
        variance: Tensor = 1 - _noising().alphas_cumprod.to(z.device)[times]
        errors = (self.predict(noisy, times, z) - clean).square().flatten(1).mean(dim=1)
        return (errors * (1 / variance).clamp(max=MOST_WEIGHT)).mean()

    def sketch_loss(
        self, embeddings: Tensor, thumbnails: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean squared error of the sketches, from which alone they learn.

        Args:
            embeddings: (B, D), of unit length.
            thumbnails: (B, 3, sketch, sketch), in [0, 1].
            generator: of the noise that is added to the embeddings, on the CPU.
        """
        z = self._standard(embeddings)
        noise = SKETCH_NOISE * torch.randn(z.shape, generator=generator).to(z.device)
        return F.mse_loss(self.sketch(z + noise), thumbnails * 2 - 1)

    def predict(self, noisy: Tensor, times: Tensor, z: Tensor) -> Tensor:
        """Return the clean samples of noisy ones at timesteps (B,), given standardised z (B, D).

        The network adds to the enlarged sketch.
        """
        sketch = self.sketch(z).detach()
        side = self.shape.side
        blurred = F.interpolate(sketch, size=(side, side), mode="bilinear")
        sketch = F.interpolate(sketch, size=noisy.shape[-2:], mode="bilinear")
        inputs = torch.cat([noisy, sketch], dim=1).contiguous(memory_format=torch.channels_last)
        detail = self.unet(inputs, times, None, class_labels=z).sample
        clean: Tensor = F.pixel_unshuffle(blurred, self.shape.patch) + detail
        return clean

    @torch.no_grad()
    def sample(
        self,
        embeddings: Tensor,
        seeds: Sequence[int],
        guidance: float | None = None,
        steps: int = DECODER_STEPS,
    ) -> Tensor:
        """Draw pictures of image embeddings.

        Args:
            embeddings: (B, D), of any length.
            seeds: one for each picture.
            guidance: scale of the classifier-free guidance; 1 is none.
            steps: of the diffusion.

        Returns:
            (B, 3, S, S), in [0, 1].
        """
        guidance = GUIDANCE if guidance is None else guidance
        z = self._standard(F.normalize(embeddings, dim=1))
        both = torch.cat([z, torch.zeros_like(z)])
        side = self.shape.side // self.shape.patch
        shape = (3 * self.shape.patch**2, side, side)
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        sample = torch.stack(draws).to(z.device)
        denoising = scheduler()
        denoising.set_timesteps(steps, device=z.device)
        for time in denoising.timesteps:
            clean = self.predict(sample.repeat(2, 1, 1, 1), time.expand(len(both)), both)
            given, free = clean.chunk(2)
            sample = denoising.step(free + guidance * (given - free), time, sample).prev_sample
        return (F.pixel_shuffle(sample, self.shape.patch) / 2 + 0.5).clamp(0, 1)

    def _standard(self, embeddings: Tensor) -> Tensor:
        """Return embeddings whose mean is 0 and whose numbers have size 1."""
        return (embeddings - self.mean) / self.deviation
