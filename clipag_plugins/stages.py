"""The stages of an image tower, whatever its kind: whose features one may look at."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .base import ImageTower
from .errors import ClipagError
from .mini import Block, MiniImageTower
from .vit import VisionTransformer

Maps = Callable[[Tensor], Tensor]


def stages(visual: Any) -> tuple[list[nn.Module], Maps]:
    """Return a tower's stages or blocks, first to last, and what makes maps of their outputs.

    The maps are (B, C, h, w): of a transformer's tokens, those of patches alone.

    Raises:
        ClipagError: the tower is of a kind whose stages are not known here.
    """
    tower: Any = visual
    while isinstance(tower, ImageTower):  # a smoothed tower holds another
        tower = tower.tower
    trunk: Any = getattr(tower, "trunk", None)  # timm's
    if isinstance(tower, MiniImageTower):
        layers = list(tower.layers)
        # The last block of each stage.
        ends: list[nn.Module] = [
            a
            for a, b in zip(layers, [*layers[1:], None], strict=True)
            if isinstance(a, Block) and not isinstance(b, Block)
        ]
        return ends, lambda x: x
    if isinstance(tower, VisionTransformer):  # ours are (length, batch, width)
        return list(tower.transformer.resblocks), lambda x: _grid(x.transpose(0, 1), 1)
    if hasattr(tower, "transformer"):  # open_clip's own, batch first
        return list(tower.transformer.resblocks), lambda x: _grid(x, 1)
    if hasattr(tower, "layer4"):  # OpenAI's ResNets
        return [tower.layer1, tower.layer2, tower.layer3, tower.layer4], lambda x: x
    if hasattr(trunk, "stages"):
        return list(trunk.stages), lambda x: x
    if hasattr(trunk, "blocks") and hasattr(trunk, "num_prefix_tokens"):
        return list(trunk.blocks), lambda x: _grid(x, trunk.num_prefix_tokens)
    raise ClipagError(f"It is not known where {type(tower).__name__} keeps its features.")


def _grid(tokens: Tensor, extra: int) -> Tensor:
    """Turn tokens (B, extra + h·w, C) into maps (B, C, h, w)."""
    side = math.isqrt(tokens.shape[1] - extra)
    maps: Tensor = tokens[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    return maps
