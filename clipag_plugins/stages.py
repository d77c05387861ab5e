"""The stages of an image tower of any known architecture, and their outputs as feature maps."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .base import ImageTower
from .errors import ClipagError
from .lite import LiteTower
from .mini import Block, MiniImageTower
from .two_scales import TwoScaleImageTower
from .vit import VisionTransformer

ToMaps = Callable[[Tensor], Tensor]  # turns the output of a stage into maps (B, C, h, w)


def stages(visual: Any) -> tuple[list[nn.Module], ToMaps]:
    """Return the stages or blocks of an image tower in order, and how to turn outputs into maps.

    The second value is a function that maps the output of a stage to feature maps (B, C, h, w). For
    a transformer they hold the patch tokens only.

    Raises:
        ClipagError: the stages of this architecture are unknown.
    """
    tower: Any = visual
    while isinstance(tower, ImageTower):  # a smoothed tower wraps another wrapper
        tower = tower.tower
    if isinstance(tower, TwoScaleImageTower):
        tower = tower.fine
    trunk: Any = getattr(tower, "trunk", None)  # of a timm model in open_clip
    if isinstance(tower, LiteTower):
        blocks = list(tower.blocks)
        starts = [
            not block.is_residual for block in blocks[1:]
        ]  # a stage's first block has no skip
        ends = [block for block, ends in zip(blocks, [*starts, True], strict=True) if ends]
        return ends, lambda x: x
    if isinstance(tower, MiniImageTower):
        layers = list(tower.layers)
        last_blocks: list[nn.Module] = [
            layer
            for layer, following in zip(layers, [*layers[1:], None], strict=True)
            if isinstance(layer, Block) and not isinstance(following, Block)
        ]
        return last_blocks, lambda x: x
    if isinstance(tower, VisionTransformer):  # its tokens are (length, batch, width)
        return list(tower.transformer.resblocks), lambda x: _grid(x.transpose(0, 1), 1)
    if hasattr(tower, "transformer"):  # open_clip's tokens are (batch, length, width)
        return list(tower.transformer.resblocks), lambda x: _grid(x, 1)
    if hasattr(tower, "layer4"):  # OpenAI's ResNets
        return [tower.layer1, tower.layer2, tower.layer3, tower.layer4], lambda x: x
    if hasattr(trunk, "stages"):
        return list(trunk.stages), lambda x: x
    if hasattr(trunk, "blocks") and hasattr(trunk, "num_prefix_tokens"):
        return list(trunk.blocks), lambda x: _grid(x, trunk.num_prefix_tokens)
    raise ClipagError(f"The stages of the image tower {type(tower).__name__} are unknown.")


def _grid(tokens: Tensor, extra: int) -> Tensor:
    """Turn tokens (B, extra + h · w, C) of a square grid into maps (B, C, h, w)."""
    side = math.isqrt(tokens.shape[1] - extra)
    maps: Tensor = tokens[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    return maps
