"""The towers of the embedded models, `clip-mini` and `clipag-mini`.

CLIP-shaped but small: CLIP's own BPE tokens and 77 positions on the text side, and a
convolutional image tower that works at 48 × 48 inside. It has no batch normalisation, so
that one picture's gradient never depends on the others in its batch, and smooth
activations, so that the gradient is smooth too (Xie et al., "Smooth Adversarial
Training", 2020).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ImageTower, TwoTowers
from .errors import ClipagError
from .vit import VisionTransformer


class Block(nn.Module):
    """Pre-activation residual block of two 3 × 3 convolutions, starting as the identity."""

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

    Maps (B, 3, S, S), normalised with CLIP's mean and std, to (B, embed_dim). S is 48 by
    design; any multiple of 16 works, since the last stage is averaged over space.
    """

    def __init__(self, embed_dim: int, widths: tuple[int, ...], depths: tuple[int, ...]):
        super().__init__()
        # Kernels twice their stride: every pixel is covered equally often, so the gradient
        # with respect to the image has no grid in it.
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
    """Adds to a text's embedding what an image tower saw under such captions.

    Contrastive training only ranks texts: the embedding that is nearest to a text need not be one
    that pictures of it have. So a text recalls, by attention, what pictures of such captions look
    like to the tower: keys are the embeddings of the training captions, values the means of their
    pictures'. It recalls its own caption's above all, if training had it. This is a cache as of
    Tip-Adapter (Zhang et al., ECCV 2022), asked by texts, and does without training what
    unCLIP's prior is trained for (Ramesh et al., 2022). `finetune/memory.py` fills it.
    """

    # R-Prec on 100 training captions of no list, with what they themselves recall and without it
    # and its like (above 0.93): 65 and 15 % at 0.05, 63 and 21 % at 0.1, 54 and 22 % at 0.15.
    TEMPERATURE = 0.1

    def __init__(self, captions: int, embed_dim: int):
        super().__init__()
        self.register_buffer("keys", torch.zeros(captions, embed_dim))
        self.register_buffer("values", torch.zeros(captions, embed_dim))
        self.keys: Tensor
        self.values: Tensor

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (B, D) plus what they recall, in equal parts."""
        own = F.normalize(embeddings, dim=1)
        recalled = (own @ self.keys.T / self.TEMPERATURE).softmax(dim=1) @ self.values
        return own + F.normalize(recalled, dim=1)


class MiniTextTower(nn.Module):
    """Transformer over CLIP's BPE tokens: (B, ≤ 77) int64 → (B, embed_dim).

    Sees the whole text at once and averages over its tokens, as the sentence encoder does
    that it is distilled from. Positions are sinusoidal: every one of the 77 works although
    few training texts are that long. It may end in a `Memory` of so many captions.
    """

    def __init__(
        self,
        embed_dim: int,
        width: int,
        heads: int,
        layers: int,
        context_length: int,
        vocab: int,
        memory: int = 0,
    ):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, width)
        nn.init.normal_(self.token_embedding.weight, std=0.3)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.ln_final = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim)
        self.memory = Memory(memory, embed_dim) if memory else None
        angle = torch.arange(context_length)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(10_000.0) / width)
        )
        positions = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1) * 0.3
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised."""
        said = self.words(tokens)
        embedding: Tensor = said if self.memory is None else self.memory(said)
        return embedding

    def words(self, tokens: Tensor) -> Tensor:
        """Return what the words say, without what they recall: (B, embed_dim), not normalised."""
        last = tokens.argmax(dim=1)  # the end-of-text token has the highest number
        tokens = tokens[:, : int(last.max()) + 1]
        padding = torch.arange(tokens.shape[1], device=tokens.device) > last[:, None]
        x = self.token_embedding(tokens) + self.positions[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x, src_key_padding_mask=padding))
        kept = (~padding)[:, :, None].to(x.dtype)
        embedding: Tensor = self.projection((x * kept).sum(1) / kept.sum(1))
        return embedding


class MiniClip(TwoTowers):
    """An embedded model: the towers above behind OpenAI's interface."""

    text: MiniTextTower

    def encode_words(self, text: Tensor) -> Tensor:
        """Return text embeddings (B, embed_dim), not normalised, without the memory's part."""
        return self.text.words(text)


def build_towers(config: dict[str, Any]) -> tuple[nn.Module, MiniTextTower]:
    """Build both towers, untrained, from the `model_cfg` of an embedded model's config.

    The image tower is convolutional as above or, where its `vision_cfg` has a patch_size, a
    vision transformer: `finetune.ablation` compares the two.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    image_tower: nn.Module
    if "patch_size" in vision:
        image_tower = VisionTransformer(
            vision["image_size"], vision["patch_size"], vision["width"], vision["layers"],
            max(1, vision["width"] // 64), config["embed_dim"], quick_gelu=False,
        )  # fmt: skip
    else:
        image_tower = MiniImageTower(
            config["embed_dim"], tuple(vision["widths"]), tuple(vision["depths"])
        )
    text_tower = MiniTextTower(
        config["embed_dim"],
        text["width"],
        text["heads"],
        text["layers"],
        text["context_length"],
        text["vocab_size"],
        text.get("memory", 0),
    )
    return image_tower, text_tower


def build_model(config: dict[str, Any], name: str, logit_scale: float = 0.0) -> MiniClip:
    """Build an embedded model, untrained, from the `model_cfg` of its config.

    Raises:
        ClipagError: the config is not an embedded model's.
    """
    try:
        image_tower, text_tower = build_towers(config)
        side, text = int(config["vision_cfg"]["image_size"]), config["text_cfg"]
        visual = ImageTower(image_tower, side, config["embed_dim"])
        lengths = text["context_length"], text["vocab_size"]
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ClipagError(f"The config of {name} is not an embedded model's.") from error
    return MiniClip(name, visual, text_tower, logit_scale, *lengths, config)
