"""unCLIP's autoregressive prior (Ramesh et al., 2022, section 2.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..latents import PrincipalComponents
from .network import Condition, Prior, Shape

REACH = 3.0  # standard deviations of a component that its buckets cover
# The dot product that samples are asked for: unCLIP draws it from the upper half of the data's.
ASKED_QUANTILE = 0.75


class AutoregressivePrior(Prior):
    """Draws principal components of z_i as codes, one after the other, the largest first.

    The sequence is: tokens, z_t, the quantised dot product z_i · z_t, and the codes.
    """

    guidance = 1.5

    def __init__(self, shape: Shape):
        super().__init__(shape, extra=shape.components)
        self.codes = nn.Embedding(shape.buckets, shape.width)
        self.dots = nn.Embedding(shape.buckets, shape.width)
        self.to_logits = nn.Linear(shape.width, shape.buckets)
        self.register_buffer("mean", torch.zeros(shape.embed_dim))
        self.register_buffer("directions", torch.zeros(shape.components, shape.embed_dim))
        self.register_buffer("deviations", torch.ones(shape.components))
        self.register_buffer("dot_range", torch.tensor([-1.0, 1.0, 1.0]))  # least, most, asked for
        self.mean: Tensor
        self.directions: Tensor
        self.deviations: Tensor
        self.dot_range: Tensor

    def fit_statistics(self, embeddings: Tensor, text_embeddings: Tensor) -> None:
        """Fit the components of z_i (N, D), and the range of its dot products with z_t (N, D)."""
        components = PrincipalComponents.fit(embeddings, self.shape.components)
        self.mean.copy_(components.mean)
        self.directions.copy_(components.directions)
        self.deviations.copy_(components.variances.sqrt().clamp_min(1e-6))
        dots = (embeddings * text_embeddings).sum(dim=1).sort().values
        places = torch.tensor([0.0, 1.0, ASKED_QUANTILE]) * (len(dots) - 1)
        self.dot_range.copy_(dots[places.long().to(dots.device)])

    def encode(self, embeddings: Tensor) -> Tensor:
        """Return the codes (B, components) of embeddings (B, D)."""
        components = PrincipalComponents(self.mean, self.directions, self.deviations.square())
        relative = components.coordinates(embeddings) / self.deviations
        return self._bucket((relative + REACH) / (2 * REACH))

    def decode(self, codes: Tensor) -> Tensor:
        """Return the unit-length embeddings (B, D) of codes (B, components)."""
        relative = (codes + 0.5) / self.shape.buckets * (2 * REACH) - REACH
        components = PrincipalComponents(self.mean, self.directions, self.deviations.square())
        return components.reconstruct(relative * self.deviations)

    def loss(
        self, condition: Condition, embeddings: Tensor, dropped: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean cross-entropy of the codes: see `Prior.loss`."""
        codes = self.encode(embeddings)
        dots = (embeddings * condition.embeddings).sum(dim=1)
        start = self._start(self.prefix(condition, dropped), dots)
        features = self.features(torch.cat([start, self.codes(codes[:, :-1])], dim=1))
        logits = self.to_logits(features[:, -self.shape.components :])
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())

    @torch.no_grad()
    def sample(
        self, condition: Condition, generators: Sequence[torch.Generator], guidance: float
    ) -> Tensor:
        """Draw embeddings: see `Prior.sample`."""
        count, device = len(condition.embeddings), condition.embeddings.device
        nothing = torch.ones(count, dtype=torch.bool, device=device)
        prefix = torch.cat([self.prefix(condition), self.prefix(condition, nothing)])
        sequence = self._start(prefix, self.dot_range[2].expand(2 * count))
        length = self.shape.components
        chances = torch.stack([torch.rand(length, generator=each) for each in generators])
        chances, codes = chances.to(device), []
        for number in range(length):
            conditional, free = self.to_logits(self.features(sequence)[:, -1]).chunk(2)
            shares = (free + guidance * (conditional - free)).softmax(dim=1).cumsum(dim=1)
            code = (shares < chances[:, number, None]).sum(dim=1).clamp(max=self.shape.buckets - 1)
            codes.append(code)
            sequence = torch.cat([sequence, self.codes(code.repeat(2))[:, None]], dim=1)
        return self.decode(torch.stack(codes, dim=1))

    def _start(self, prefix: Tensor, dots: Tensor) -> Tensor:
        """Append the quantised dot products (B,) to a prefix."""
        least, most, _ = self.dot_range
        places = (dots - least) / (most - least).clamp_min(1e-6)
        return torch.cat([prefix, self.dots(self._bucket(places))[:, None]], dim=1)

    def _bucket(self, places: Tensor) -> Tensor:
        """Return the buckets of places in [0, 1]."""
        return (places * self.shape.buckets).long().clamp(0, self.shape.buckets - 1)
