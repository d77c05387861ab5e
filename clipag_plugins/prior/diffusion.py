"""unCLIP's diffusion prior (Ramesh et al., 2022, section 2.2), with diffusers' scheduler."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import library
from .network import Condition, Prior, Shape

TRAINING_STEPS = 1000
SAMPLING_STEPS = 32


def scheduler() -> Any:
    """Return diffusers' DDPM scheduler with the cosine schedule, for predictions of clean samples.

    Raises:
        ClipagError: diffusers is not installed.
    """
    return library("diffusers", "diffusers").DDPMScheduler(
        TRAINING_STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
    )


@cache
def _noising() -> Any:
    return scheduler()


class DiffusionPrior(Prior):
    """Predicts the clean z_i from: tokens, z_t, the timestep, the noised z_i and a last query."""

    guidance = 2.0

    def __init__(self, shape: Shape):
        super().__init__(shape, extra=3)
        self.from_time = nn.Sequential(
            nn.Linear(shape.width, shape.width), nn.SiLU(), nn.Linear(shape.width, shape.width)
        )
        self.from_image = nn.Linear(shape.embed_dim, shape.width)
        self.query = nn.Parameter(torch.randn(shape.width) * 0.02)
        self.to_image = nn.Linear(shape.width, shape.embed_dim)
        self.register_buffer("mean", torch.zeros(shape.embed_dim))
        self.register_buffer("deviation", torch.ones(()))
        self.mean: Tensor
        self.deviation: Tensor

    def fit_statistics(self, embeddings: Tensor, text_embeddings: Tensor) -> None:
        """Take the mean and the deviation of image embeddings (N, D)."""
        self.mean.copy_(embeddings.mean(dim=0))
        self.deviation.copy_((embeddings - self.mean).square().mean().sqrt())

    def predict(self, prefix: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """Return the clean samples (B, D) of noisy ones at timesteps (B,)."""
        half = self.shape.width // 2
        rates = torch.exp(torch.arange(half, device=times.device) * (-math.log(10_000.0) / half))
        angles = times[:, None].float() * rates
        waves = F.pad(
            torch.cat([angles.sin(), angles.cos()], dim=1), (0, self.shape.width - 2 * half)
        )
        tail = [self.from_time(waves), self.from_image(noisy), self.query.expand(len(noisy), -1)]
        features = self.features(torch.cat([prefix, torch.stack(tail, dim=1)], dim=1))
        clean: Tensor = self.to_image(features[:, -1])
        return clean

    def loss(
        self, condition: Condition, embeddings: Tensor, dropped: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean squared error of the predicted clean samples: see `Prior.loss`."""
        clean = (embeddings - self.mean) / self.deviation
        device = clean.device
        times = torch.randint(TRAINING_STEPS, (len(clean),), generator=generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noisy = _noising().add_noise(clean, noise, times)
        return F.mse_loss(self.predict(self.prefix(condition, dropped), noisy, times), clean)

    @torch.no_grad()
    def sample(
        self, condition: Condition, generators: Sequence[torch.Generator], guidance: float
    ) -> Tensor:
        """Draw embeddings: see `Prior.sample`."""
        count, device = len(condition.embeddings), condition.embeddings.device
        nothing = torch.ones(count, dtype=torch.bool, device=device)
        prefix = torch.cat([self.prefix(condition), self.prefix(condition, nothing)])
        steps = scheduler()
        steps.set_timesteps(SAMPLING_STEPS, device=device)
        draws = [torch.randn(self.shape.embed_dim, generator=each) for each in generators]
        sample = torch.stack(draws).to(device)
        for time in steps.timesteps:
            times = time.expand(2 * count)
            conditional, free = self.predict(prefix, sample.repeat(2, 1), times).chunk(2)
            clean = free + guidance * (conditional - free)
            sample = steps.step(clean, time, sample, generator=list(generators)).prev_sample
        return F.normalize(sample * self.deviation + self.mean, dim=1)
