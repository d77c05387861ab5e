"""What both priors share: a causal transformer behind a text and its embedding."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import ClipagModel
from ..errors import ClipagError
from ..tokenizer import tokenize

KINDS = ("diffusion", "autoregressive")
LARGEST, DEEPEST = 65_536, 256  # of a shape's numbers and of its layers, which a file may claim


@dataclass(frozen=True)
class Shape:
    """The shape of a prior.

    Attributes:
        kind: "diffusion" or "autoregressive".
        embed_dim: width of the embeddings that it draws.
        token_width: width of the token embeddings of the model's text tower.
        text_length: tokens of a caption that it reads; the rest of a longer one is in z_t alone.
        width, layers, heads: of the transformer.
        components: principal components that an autoregressive prior draws.
        buckets: of each component, and of the dot product with the text's embedding.

    Raises:
        ClipagError: a value is impossible.
    """

    kind: str
    embed_dim: int
    token_width: int
    text_length: int = 32
    width: int = 192
    layers: int = 6
    heads: int = 6
    components: int = 96
    buckets: int = 64

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ClipagError(f"`kind` is {self.kind!r}: choose from {', '.join(KINDS)}.")
        for name, value in vars(self).items():
            most = DEEPEST if name == "layers" else LARGEST
            if name != "kind" and not (type(value) is int and 1 <= value <= most):
                raise ClipagError(f"`{name}` is {value!r}: choose from 1 to {most}.")
        if self.width % self.heads:
            raise ClipagError(f"`width` is {self.width}: choose a multiple of {self.heads} heads.")
        if self.components > self.embed_dim:
            raise ClipagError(
                f"`components` is {self.components}, but embeddings have {self.embed_dim} numbers: "
                "choose at most as many."
            )


@dataclass(frozen=True)
class Condition:
    """Texts as a prior sees them.

    Attributes:
        tokens: token embeddings of the model's text tower, (B, N, token_width).
        is_text: which of them are not padding, (B, N).
        embeddings: z_t, (B, D), of unit length.
    """

    tokens: Tensor
    is_text: Tensor
    embeddings: Tensor

    def repeated(self, times: int) -> "Condition":
        """Return each text `times` times, one after the other."""
        return Condition(*(each.repeat_interleave(times, dim=0) for each in vars(self).values()))


@torch.no_grad()
def condition_of(model: ClipagModel, texts: Sequence[str], truncate: bool = False) -> Condition:
    """Return texts as a prior of a model sees them.

    z_t is the embedding without the memory of pictures (`mini.Memory`), which a prior replaces.

    Raises:
        ClipagError: a text is empty, or over 77 tokens and `truncate` is false.
    """
    if not all(text.strip() for text in texts):
        raise ClipagError("A text is empty: write what the picture should show.")
    try:
        tokens = tokenize(list(texts), truncate=truncate).to(model.device)
    except RuntimeError as error:
        raise ClipagError(
            f"A prompt has more than {model.context_length} tokens: shorten it, or set `truncate`."
        ) from error
    embeddings = F.normalize(model.encode_words(tokens).float(), dim=1)
    return condition_of_tokens(model, tokens, embeddings)


@torch.no_grad()
def condition_of_tokens(model: ClipagModel, tokens: Tensor, embeddings: Tensor) -> Condition:
    """Return tokens (B, 77) and their unit-length embeddings (B, D) as a prior sees them."""
    last = tokens.argmax(dim=1)  # the end-of-text token has the highest number of all
    is_text = torch.arange(tokens.shape[1], device=tokens.device) <= last[:, None]
    features: Tensor = model.token_embedding(tokens)  # type: ignore[operator]
    return Condition(features.float(), is_text, embeddings)


class Prior(nn.Module, ABC):
    """A causal transformer over: the text's tokens, z_t, and what a kind of prior adds.

    Args:
        shape: its shape.
        extra: positions that the kind adds.
    """

    guidance: float  # default scale of the classifier-free guidance

    def __init__(self, shape: Shape, extra: int):
        super().__init__()
        self.shape = shape
        width = shape.width
        self.from_tokens = nn.Linear(shape.token_width, width)
        self.from_text = nn.Linear(shape.embed_dim, width)
        self.padding = nn.Parameter(torch.randn(shape.text_length, width) * 0.02)
        self.no_text = nn.Parameter(torch.randn(shape.text_length + 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(shape.text_length + 1 + extra, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, shape.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        self.last_norm = nn.LayerNorm(width)

    def prefix(self, condition: Condition, dropped: Tensor | None = None) -> Tensor:
        """Return the tokens and z_t as a sequence (B, text_length + 1, width).

        Texts for which `dropped` (B,) is true are replaced by what stands for no text.
        """
        length = self.shape.text_length
        is_text = condition.is_text[:, :length, None]
        tokens = self.from_tokens(condition.tokens[:, :length])
        tokens = torch.where(is_text, tokens, self.padding)
        # Unit vectors times √D have coordinates of size 1.
        z_t = self.from_text(condition.embeddings * self.shape.embed_dim**0.5)
        sequence = torch.cat([tokens, z_t[:, None]], dim=1)
        if dropped is not None:
            sequence = torch.where(dropped[:, None, None], self.no_text, sequence)
        return sequence

    def features(self, sequence: Tensor) -> Tensor:
        """Run the transformer over a sequence (B, N, width); no position sees a later one."""
        length = sequence.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=sequence.device).triu(1)
        x = self.transformer(sequence + self.positions[:length], mask=mask, is_causal=True)
        features: Tensor = self.last_norm(x)
        return features

    @abstractmethod
    def fit_statistics(self, embeddings: Tensor, text_embeddings: Tensor) -> None:
        """Take the means and scales of training pairs: z_i (N, D) and z_t (N, D)."""

    @abstractmethod
    def loss(
        self, condition: Condition, embeddings: Tensor, dropped: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean training loss of image embeddings (B, D).

        Args:
            condition: their texts.
            embeddings: of unit length.
            dropped: which texts are left out, (B,), for classifier-free guidance.
            generator: source of all random numbers, on the CPU.
        """

    @abstractmethod
    def sample(
        self, condition: Condition, generators: Sequence[torch.Generator], guidance: float
    ) -> Tensor:
        """Draw unit-length image embeddings (B, D).

        Args:
            condition: the texts.
            generators: one for each text, on the CPU, so that none depends on its batch.
            guidance: scale of the classifier-free guidance; 1 is none.
        """
