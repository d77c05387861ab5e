"""unCLIP's whole chain: a prior, a decoder, and CLIPAG to refine what the decoder drew.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents", 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import RunOptions, check_side, seeds_of
from .ascent import Ascent, Callback
from .base import ClipagModel
from .defaults import DECODER_STEPS, MODEL, REFINEMENT_STEPS, SIDE
from .errors import ClipagError
from .hub import load_model
from .inversion import Inversion, draw_embeddings
from .prior.drawing import picture_targets
from .prior.files import load_decoder
from .targets import goal_of

MOST_STEPS = 1000


@dataclass(frozen=True)
class Decoding:
    """How a decoder's pictures are drawn and refined.

    Attributes:
        steps: of the diffusion, from 1 to 1000.
        guidance: scale of the classifier-free guidance; by default the decoder's.
        refinement: steps of CLIPAG's ascent from the decoder's picture; 0 leaves it as it is.
        seed: one or several. Each prompt is drawn once for each.
        size: side of the pictures in pixels, from 16 to 2048. The decoder's are enlarged to it.

    Raises:
        ClipagError: a value is out of range.
    """

    steps: int = DECODER_STEPS
    guidance: float | None = None
    refinement: int = REFINEMENT_STEPS
    seed: int | Sequence[int] = 0
    size: int = SIDE

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise ClipagError(f"`steps` is {self.steps}: choose from 1 to {MOST_STEPS}.")
        if self.guidance is not None and not self.guidance >= 0:
            raise ClipagError(f"`guidance` is {self.guidance}: choose 0 or more.")
        if self.refinement < 0:
            raise ClipagError(f"`refinement` is {self.refinement}: choose 0 or more steps.")
        if not isinstance(self.size, int):
            raise ClipagError(f"`size` is {self.size}: decoders draw squares, so give one side.")
        check_side(self.size)
        seeds_of(self.seed)


def unclip(
    prompts: Sequence[str],
    decoder: str | Path,
    model: ClipagModel | str | Path = MODEL,
    how: Decoding = Decoding(),
    *,
    callback: Callback | None = None,
    options: RunOptions = RunOptions(),
) -> tuple[Tensor, Ascent | None]:
    """Draw texts as unCLIP does: an embedding by a prior, a picture of it by a decoder.

    Args:
        prompts: what to draw.
        decoder: a file that `clipag decoder` wrote.
        model: encodes the texts and refines the pictures: a loaded model, or what `load_model`
            takes. The decoder and the prior belong to its image tower.
        how: steps, seeds and size.
        callback: of the refinement, called as `ascend` says.
        options: `options.prior` names the prior; without one, the text's embedding is decoded.

    Returns:
        The pictures (B, 3, S, S) in [0, 1], those of the first prompt for each seed first, and the
        ascent that refined them, if there was one.

    Raises:
        ClipagError: an argument is out of range, or a file cannot be read or is another model's.
    """
    loaded = model if isinstance(model, ClipagModel) else load_model(model)
    network, seeds = load_decoder(decoder, loaded), seeds_of(how.seed)
    targets = [goal_of(each) for each in picture_targets(loaded, prompts, seeds, options)]
    embeddings = torch.stack([target.embedding for target in targets])
    images = network.sample(embeddings, seeds * len(prompts), how.guidance, how.steps)
    size = (how.size, how.size)
    images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    if not how.refinement:
        return images, None
    refining = Inversion(closeness=1, blur=0, size=how.size, steps=how.refinement)
    ascent = draw_embeddings(
        embeddings, loaded, refining, sources=images, callback=callback, options=options
    )
    return ascent.images, ascent
