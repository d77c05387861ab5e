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
# Candidates of a try, of 400, that the fine one of two towers sees. For 350 prompts and four tries
# of the seeds 0 and 1, two of 2,800 starts would differ if it saw all.
SHORTLIST = 128
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

    Each try chooses among its own candidates: every `tries`-th. Of two towers, the fine one takes
    most of the time, and all candidates are blurs. So it sees only those of a try that are most
    similar in the coarse tower.

    Args:
        candidates: (N · tries, 3, 16, 16) in [0, 1].
        targets: B of them.
        model: measures the similarity.
        tries: starts of each image.
        show: called with the first candidates, and with the choice of a coarse tower.
    """
    show(candidates[:tries].expand(len(targets), *candidates[:tries].shape))
    embeddings = torch.stack([target.embedding for target in targets])
    eligible = torch.arange(len(candidates), device=model.device).view(1, -1, tries)
    eligible = eligible.expand(len(targets), -1, -1)  # each try's candidates, (B, N, tries)
    tower = getattr(model.visual, "tower", None)
    if isinstance(tower, TwoScaleImageTower):
        side = tower.coarse_side
        coarse = _embedded(candidates, side, lambda x: tower.embed_coarse(normalize(x)))
        likeness = embeddings[:, : coarse.shape[1]] @ coarse.T
        best = likeness.view(eligible.shape).topk(min(SHORTLIST, eligible.shape[1]), dim=1).indices
        eligible = eligible.gather(1, best)
        show(candidates[eligible[:, 0]])
    needed, place = eligible.unique(return_inverse=True)
    side = model.visual.native_size
    z = _embedded(candidates[needed], side, lambda x: embed_images(model, x))
    likeness = (embeddings @ z.T).gather(1, place.flatten(1)).view(eligible.shape)
    chosen = eligible.gather(1, likeness.argmax(dim=1, keepdim=True))[:, 0]
    return candidates[chosen]


def _embedded(candidates: Tensor, side: int, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the embeddings (N, D) of candidates (N, 3, 16, 16) at a tower's own side."""
    # Small samples are judged at this side; only the chosen ones are enlarged to a picture's.
    chunks = candidates.split(CANDIDATES_AT_ONCE)
    return torch.cat([embed(mixture.enlarge(chunk, side)) for chunk in chunks])
