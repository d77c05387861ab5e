"""Starting images: noise, a picture, or the samples of a mixture that a model likes best."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from . import mixture
from .arguments import width_and_height
from .base import ClipagModel, embed_images, normalize
from .pictures import from_pil, open_picture
from .targets import Target
from .two_scales import TwoScaleImageTower

CANDIDATES_A_CLASS = 2
# More need blocks so large that the system clears their pages anew for each layer.
CANDIDATES_AT_ONCE = 25
NOISE_MEAN, NOISE_DEVIATION = 0.5, 0.2  # of `init="noise"`

Preview = Callable[[Tensor], None]  # takes images (B · tries, 3, H, W)


def starting_images(
    init: str | Path | Image.Image,
    targets: Sequence[Target],
    model: ClipagModel,
    size: int | tuple[int, int],
    seed: int,
    tries: int = 1,
    preview: Preview | None = None,
) -> Tensor:
    """Return the starts of the ascents, (B, tries, 3, H, W): an image for each target and try.

    `preview` is called with some of the starts that the model compares, as soon as there are any.
    """
    width, height = width_and_height(size)

    def full_size(chosen: Tensor) -> Tensor:
        enlarged = mixture.enlarge(chosen.flatten(0, 1), min(width, height))
        return _extended(enlarged.unflatten(0, chosen.shape[:2]), (width, height))

    def show(chosen: Tensor) -> None:
        if preview is not None:
            preview(full_size(chosen).flatten(0, 1))

    generator = torch.Generator().manual_seed(seed)
    if init == "noise":
        noise = torch.randn(tries, 3, height, width, generator=generator)
        noise = noise * NOISE_DEVIATION + NOISE_MEAN
        start = noise.clamp(0, 1).expand(len(targets), -1, -1, -1, -1)
    elif init == "gmm" or str(init).endswith(".safetensors"):
        gaussians = mixture.load(None if init == "gmm" else Path(str(init)))
        candidates = gaussians.sample(CANDIDATES_A_CLASS * tries, generator).to(model.device)
        start = full_size(nearest(candidates, targets, model, tries, show))
    else:
        start = from_pil(open_picture(init), (width, height)).expand(
            len(targets), tries, -1, -1, -1
        )
    # Pixels stay float32 whatever the model is: small steps vanish in half precision.
    return start.to(model.device, torch.float32)


def _extended(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Extend square images (B, T, 3, S, S) to (width, height) by repeating their borders."""
    width, height = size
    left, top = (width - images.shape[-1]) // 2, (height - images.shape[-2]) // 2
    right, bottom = width - images.shape[-1] - left, height - images.shape[-2] - top
    if not (left or top or right or bottom):
        return images
    borders = (left, right, top, bottom)
    flat = F.pad(images.flatten(0, 1), borders, mode="replicate")
    extended: Tensor = flat.unflatten(0, images.shape[:2])
    return extended


@torch.no_grad()
def nearest(
    candidates: Tensor,
    targets: Sequence[Target],
    model: ClipagModel,
    tries: int,
    show: Callable[[Tensor], None] = lambda chosen: None,
) -> Tensor:
    """Choose the candidate that is most similar to each target, (B, tries, 3, 16, 16).

    Each try chooses among its own candidates: every `tries`-th. Of two towers the coarse one
    chooses, since all candidates are blurs: the fine one sees in them what no eye does.

    Args:
        candidates: (N · tries, 3, 16, 16) in [0, 1].
        targets: B of them.
        model: measures the similarity.
        tries: starts of each image.
        show: called with the first candidates.
    """
    show(candidates[:tries].expand(len(targets), *candidates[:tries].shape))
    embeddings = torch.stack([target.embedding for target in targets])
    tower, side = getattr(model.visual, "tower", None), model.visual.native_size
    if isinstance(tower, TwoScaleImageTower):
        side = tower.coarse_side
        z = _embedded(candidates, side, lambda x: tower.embed_coarse(normalize(x)))
        embeddings = embeddings[:, : z.shape[1]]
    else:
        z = _embedded(candidates, side, lambda x: embed_images(model, x))
    best = (embeddings @ z.T).unflatten(1, (-1, tries)).argmax(dim=1)  # (B, tries)
    return candidates[best * tries + torch.arange(tries, device=best.device)]


def _embedded(candidates: Tensor, side: int, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the embeddings (N, D) of candidates (N, 3, 16, 16) at a tower's own side."""
    # Small samples are judged at this side; only the chosen ones are enlarged to a picture's.
    chunks = candidates.split(CANDIDATES_AT_ONCE)
    return torch.cat([embed(mixture.enlarge(chunk, side)) for chunk in chunks])
