"""The towers of the embedded models, `clip-mini` and `clipag-mini`.

They have CLIP's interface but are small. The text tower reads CLIP's BPE tokens at 77 positions;
the image tower is convolutional and works at 48 × 48. It has no batch normalisation, so a picture's
gradient never depends on the other pictures of its batch. Its activations are smooth, which makes
the gradient smooth too (Xie et al., "Smooth Adversarial Training", 2020).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ImageTower, TwoTowers, is_traced
from .lite import VARIANTS, LiteTower
from .model_config import DEEPEST, LARGEST_SIDE, Settings
from .two_scales import TwoScaleImageTower, side_by_side
from .vit import VisionTransformer

# R-Prec on 100 training captions outside both lists, with / without the memory entries within
# cosine 0.93 of the caption: T = 0.05: 65 / 15 %, 0.1: 63 / 21 %, 0.15: 54 / 22 %.
MEMORY_TEMPERATURE = 0.1
# A name of a class must recall this class, and not a mixture of its neighbours.
CONCEPTS_TEMPERATURE = 0.05


class Block(nn.Module):
    """Pre-activation residual block of two 3 × 3 convolutions; the identity before training."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape, (B, width, H, W)."""
        y: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + y


class MiniImageTower(nn.Module):
    """Convolutional image tower.

    Maps (B, 3, S, S), normalised with CLIP's mean and standard deviation, to (B, embed_dim). It is
    designed for S = 48 but takes every multiple of 16, since the last stage is averaged over space.

    Args:
        embed_dim: width of the embedding.
        widths: channels of each stage, multiples of 8.
        depths: residual blocks of each stage.
    """

    def __init__(self, embed_dim: int, widths: tuple[int, ...], depths: tuple[int, ...]):
        super().__init__()
        # Kernels are twice as wide as their stride. So they cover every pixel equally often, and
        # the gradient with respect to the image shows no grid.
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 8, stride=4, padding=2)]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage > 0:
                layers.append(nn.Conv2d(widths[stage - 1], width, 4, stride=2, padding=1))
            layers.append(nn.GroupNorm(8, width))
            layers += [Block(width) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return image embeddings (B, embed_dim), not normalised."""
        embedding: Tensor = self.head(F.silu(self.layers(x)).mean(dim=(2, 3)))
        return embedding


class Memory(nn.Module):
    """Adds to a text's embedding the embeddings of pictures with similar captions.

    Contrastive training only ranks texts: no picture of a text need have the embedding that is
    nearest to the text's. So a text retrieves, by attention, the embeddings of pictures with such
    captions. Keys are the embeddings of the training captions; values are the mean embeddings of
    each caption's pictures. If a text is itself a training caption, its own entry has the largest
    weight.

    This is Tip-Adapter's cache (Zhang et al., ECCV 2022), queried by texts. Without training it
    does what unCLIP's prior (Ramesh et al., 2022) is trained to do. `finetune/embedded/memory.py`
    computes the entries.

    Args:
        entries: how many there are.
        embed_dim: width of the embeddings.
        temperature: of the attention.
    """

    def __init__(self, entries: int, embed_dim: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.register_buffer("keys", torch.zeros(entries, embed_dim))
        self.register_buffer("values", torch.zeros(entries, embed_dim))
        self.keys: Tensor
        self.values: Tensor

    def recall(self, embeddings: Tensor) -> Tensor:
        """Return what texts (B, D) retrieve, (B, D), of unit length."""
        queries = F.normalize(embeddings, dim=1)
        attention = (queries @ self.keys.T / self.temperature).softmax(dim=1)
        return F.normalize(attention @ self.values, dim=1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return unit embeddings of texts (B, D) plus unit embeddings from the memory."""
        return F.normalize(embeddings, dim=1) + self.recall(embeddings)


@dataclass(frozen=True)
class TextSizes:
    """The sizes of a text tower.

    Attributes:
        width: of the features, an even multiple of `heads`.
        heads: attention heads.
        layers: transformer blocks.
        context_length: number of positions.
        vocab: number of tokens.
        memory: entries of the `Memory` that the tower ends in; 0 for none.
    """

    width: int
    heads: int
    layers: int
    context_length: int
    vocab: int
    memory: int


class MiniTextTower(nn.Module):
    """Transformer over CLIP's BPE tokens: (B, ≤ 77) integers → (B, embed_dim).

    Every token attends to the whole text, and the features are averaged over the tokens. The
    sentence encoder that this tower is distilled from does both too. Positions are sinusoidal, so
    that all 77 work although few training texts are that long.

    Args:
        embed_dim: width of the embedding.
        sizes: of what is inside.
    """

    def __init__(self, embed_dim: int, sizes: TextSizes):
        super().__init__()
        width = sizes.width
        self.token_embedding = nn.Embedding(sizes.vocab, width)
        nn.init.normal_(self.token_embedding.weight, std=0.3)
        layer = nn.TransformerEncoderLayer(
            width, sizes.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, sizes.layers, enable_nested_tensor=False)
        self.ln_final = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim)
        self.memory = Memory(sizes.memory, embed_dim, MEMORY_TEMPERATURE) if sizes.memory else None
        angle = torch.arange(sizes.context_length)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(10_000.0) / width)
        )
        positions = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1) * 0.3
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised."""
        embedding = self.words(tokens)
        return embedding if self.memory is None else self.memory(embedding)

    def words(self, tokens: Tensor) -> Tensor:
        """Return embeddings (B, embed_dim) without the memory's part, not normalised."""
        last = tokens.argmax(dim=1)  # the end-of-text token has the highest number of all
        if not is_traced() and tokens.shape[0] > 0:
            tokens = tokens[:, : int(last.max()) + 1]  # nothing is computed for padding alone
        padding = torch.arange(tokens.shape[1], device=tokens.device) > last[:, None]
        x = self.token_embedding(tokens) + self.positions[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x, src_key_padding_mask=padding))
        is_text = (~padding)[:, :, None].to(x.dtype)
        embedding: Tensor = self.projection((x * is_text).sum(1) / is_text.sum(1))
        return embedding


class TwoScaleTextTower(MiniTextTower):
    """The text tower of `TwoScaleImageTower`, (B, ≤ 77) integers → (B, 2 D).

    The coarse half is the text with its memory. The fine half is what the text recalls of the
    concepts: where pictures of captions and of ImageNet's classes lie in the fine tower's space.
    `finetune/embedded/concepts.py` computes both that space and the concepts.

    Args:
        embed_dim: of each half.
        sizes: of what is inside.
        concepts: how many there are.
    """

    def __init__(self, embed_dim: int, sizes: TextSizes, concepts: int):
        super().__init__(embed_dim, sizes)
        self.concepts = Memory(concepts, embed_dim, CONCEPTS_TEMPERATURE)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return text embeddings (B, 2 D), of unit length."""
        words = super().words(tokens)
        coarse = words if self.memory is None else self.memory(words)
        return side_by_side(coarse, self.concepts.recall(words))

    def words(self, tokens: Tensor) -> Tensor:
        """Return embeddings (B, 2 D) without the memory's part, of unit length."""
        words = super().words(tokens)
        return side_by_side(words, self.concepts.recall(words))


class MiniClip(TwoTowers):
    """An embedded model: the towers above with OpenAI's interface."""

    text: MiniTextTower

    def encode_words(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, without the memory's part."""
        return self.text.words(text)


def build_towers(
    config: dict[str, Any], what: str = "the config"
) -> tuple[nn.Module, MiniTextTower]:
    """Build both towers, untrained, from the `model_cfg` of an embedded model's config.

    The image tower is convolutional. If `vision_cfg` has a `patch_size`, it is a vision transformer
    instead, for comparison (benchmarks/ablation.py). If it has a `fine` and a `coarse` tower, both
    look at each picture (two_scales.py).

    Args:
        config: the `model_cfg`.
        what: how messages name it.

    Raises:
        ClipagError: a setting is missing or impossible.
    """
    embed_dim = Settings(config, what).integer("embed_dim")
    vision, text = Settings(config["vision_cfg"], what), Settings(config["text_cfg"], what)
    if "fine" not in vision.values:
        return _image_tower(vision, embed_dim), MiniTextTower(embed_dim, _text_sizes(text))
    Settings(config, what).require_multiple("embed_dim", embed_dim, 2)
    half = embed_dim // 2
    text_tower = TwoScaleTextTower(half, _text_sizes(text), text.integer("concepts"))
    return _two_scales(vision, half), text_tower


def _two_scales(vision: Settings, embed_dim: int) -> nn.Module:
    variant, coarse = vision.values["fine"], vision.values.get("coarse")
    if not isinstance(variant, str) or variant not in VARIANTS:
        raise vision.impossible("fine", f"expected {', '.join(VARIANTS)}")
    if not isinstance(coarse, dict):
        raise vision.impossible("coarse", "expected the settings of a tower")
    settings = Settings(coarse, vision.what)
    side = settings.integer("image_size", largest=LARGEST_SIDE)
    fine = LiteTower(embed_dim, variant)
    return TwoScaleImageTower(_image_tower(settings, embed_dim), fine, side)


def _image_tower(vision: Settings, embed_dim: int) -> nn.Module:
    side = vision.integer("image_size", largest=LARGEST_SIDE)
    if "patch_size" in vision.values:
        width = vision.integer("width")
        heads = max(1, width // 64)
        vision.require_multiple("width", width, heads)
        patch_size = vision.integer("patch_size", largest=LARGEST_SIDE)
        layers = vision.integer("layers", largest=DEEPEST)
        return VisionTransformer(
            side, patch_size, width, layers, heads, embed_dim, quick_gelu=False
        )
    widths, depths = vision.integers("widths"), vision.integers("depths", 0, DEEPEST)
    if len(widths) != len(depths) or any(width % 8 for width in widths):
        raise vision.impossible("widths", f"expected {len(depths)} multiples of 8")
    return MiniImageTower(embed_dim, widths, depths)


def _text_sizes(text: Settings) -> TextSizes:
    """Return the sizes of a text tower, from its `text_cfg`."""
    width, heads = text.integer("width"), text.integer("heads")
    text.require_multiple("width", width, heads)
    text.require_multiple("width", width, 2)  # positions are pairs of a sine and a cosine
    return TextSizes(
        width,
        heads,
        text.integer("layers", largest=DEEPEST),
        text.integer("context_length"),
        text.integer("vocab_size"),
        text.integer("memory", 0, smallest=0),
    )


def build_model(config: dict[str, Any], name: str, logit_scale: float = 0.0) -> MiniClip:
    """Build an embedded model, untrained, from the `model_cfg` of its config.

    Raises:
        ClipagError: a setting is missing or impossible.
    """
    image_tower, text_tower = build_towers(config, f"the config of {name}")
    visual = ImageTower(image_tower, config["vision_cfg"]["image_size"], config["embed_dim"])
    text = config["text_cfg"]
    return MiniClip(
        name, visual, text_tower, logit_scale, text["context_length"], text["vocab_size"], config
    )
