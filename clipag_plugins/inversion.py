"""unCLIP without a decoder network: ascend from a start to a picture of an image embedding.

unCLIP (Ramesh et al., 2022, section 3) describes a picture by two latents: z_i, the embedding of
CLIP's image tower, and x_T, the rest, from which its diffusion decoder starts. A robust tower needs
no decoder: z_i is the target of an ascent, and the ascent's start plays the part of x_T.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from .arguments import RunOptions, check_side, seeds_of
from .ascent import Ascent, Callback, ascend
from .base import ClipagModel, embed_images
from .defaults import (
    BETWEEN,
    BLUR,
    DRAWING_MODEL,
    INVERSION_CLOSENESS,
    MODEL,
    PATH_CLOSENESS,
    SIDE,
    STRENGTHS,
)
from .errors import ClipagError
from .hub import load_model
from .latents import slerp, slerp_through, text_difference
from .pictures import from_pil, open_picture
from .sampler import (
    SamplerSettings,
    best_of_tries,
    guide_of_tries,
    ranking_losses,
    settings_for,
    starting_images,
)
from .targets import Target, embedding_target

Picture: TypeAlias = str | Path | Image.Image
MOST_BLUR = 0.3


@dataclass(frozen=True)
class Inversion:
    """How image embeddings become pictures.

    Attributes:
        init: what a start is drawn from: "gmm", "noise", a mixture's file or a picture, as for
            `generate`.
        closeness: share of the blurred source picture in the start, from 0 (the start is random)
            to 1 (it is the blurred picture alone, whatever the seed).
        blur: standard deviation of the blur, as a share of the side, from 0 to 0.3.
        seed: one or several. Each picture is drawn once for each.
        size: side of the pictures in pixels, from 16 to 2048.
        steps, views, tries, canvas: as for `generate`.

    Raises:
        ClipagError: `closeness`, `blur`, `seed` or `size` is out of range.
    """

    init: Picture = "gmm"
    closeness: float = INVERSION_CLOSENESS
    blur: float = BLUR
    seed: int | Sequence[int] = 0
    size: int = SIDE
    steps: int | None = None
    views: int | None = None
    tries: int | None = None
    canvas: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.closeness <= 1:
            raise ClipagError(f"`closeness` is {self.closeness}: choose a share from 0 to 1.")
        if not 0 <= self.blur <= MOST_BLUR:
            raise ClipagError(f"`blur` is {self.blur}: choose a share from 0 to {MOST_BLUR}.")
        check_side(self.size)
        seeds_of(self.seed)

    def settings_for(self, model: ClipagModel) -> SamplerSettings:
        """Return the settings of the ascent that suit a model.

        Raises:
            ClipagError: a value is out of range, or there are several tries from one start.
        """
        return settings_for(
            model,
            steps=self.steps,
            views=self.views,
            tries=self.tries,
            canvas=self.canvas,
            # The blurred picture alone is one start, as a picture as `init` is.
            init=self.init if self.closeness < 1 else Path(),
        )


FROM_BLURRED = Inversion(closeness=PATH_CLOSENESS)


def invert(
    picture: Picture | Sequence[Picture],
    model: ClipagModel | str | Path = DRAWING_MODEL,
    how: Inversion = Inversion(),
    *,
    callback: Callback | None = None,
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Draw pictures anew from nothing but their embeddings and a start.

    What a model keeps of a picture appears, and what it ignores does not. Several seeds give
    unCLIP's variations (section 3.1): pictures of one embedding from different starts.

    Args:
        picture: a file or a PIL picture, or several. The middle square of each is used.
        model: a loaded model, or what `load_model` takes.
        how: start, seeds, size and settings.
        callback: called as `ascend` says, with the images of all tries.
        options: precision, memory, compilation and progress bar.

    Returns:
        The ascent. Its images are those of the first picture, one for each seed, then those of the
        second. Ctrl-C ends it with the best so far.

    Raises:
        ClipagError: an argument is out of range, or a file cannot be read.
    """
    loaded = _loaded(model)
    pictures = [picture] if isinstance(picture, Picture) else picture
    sources = read_sources(pictures, loaded, how.size)
    with torch.no_grad():
        embeddings = embed_images(loaded, sources)
    return draw_embeddings(
        embeddings, loaded, how, sources=sources, callback=callback, options=options
    )


def draw_embeddings(
    embeddings: Tensor,
    model: ClipagModel | str | Path = DRAWING_MODEL,
    how: Inversion = Inversion(),
    *,
    sources: Tensor | None = None,
    anchor: Tensor | None = None,
    callback: Callback | None = None,
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Draw pictures of image embeddings: what unCLIP's decoder does.

    Args:
        embeddings: (D,) or (B, D), of the model's own image tower; any length.
        model: as for `invert`.
        how: start, seeds, size and settings.
        sources: images (B, 3, S, S) in [0, 1] that `how.closeness` blends into the starts; one if
            there is an anchor.
        anchor: an embedding (D,) that all pictures share their start with. Of several tries, one is
            chosen for all of them. Without an anchor, each embedding has starts that suit it.
        callback, options: as for `invert`.

    Returns:
        The ascent, as `invert` returns it.

    Raises:
        ClipagError: the embeddings are not the model's or not finite; `closeness` is above 0
            without sources; an argument is out of range.
    """
    loaded = _loaded(model)
    rows = embeddings if embeddings.ndim > 1 else embeddings.reshape(1, -1)
    if not len(rows):
        raise ClipagError("There is no embedding: give at least one.")
    targets = [embedding_target(loaded, each) for each in rows]
    if anchor is None:
        starts = _starts(targets, loaded, how, sources)
    else:
        start = _starts([embedding_target(loaded, anchor)], loaded, how, sources)
        starts = start.expand(len(targets), -1, -1, -1, -1, -1)
    return _draw(
        targets,
        loaded,
        how,
        starts,
        is_path=anchor is not None,
        callback=callback,
        options=options,
    )


def interpolate(
    pictures: Sequence[Picture],
    model: ClipagModel | str | Path = MODEL,
    how: Inversion = FROM_BLURRED,
    *,
    between: int = BETWEEN,
    callback: Callback | None = None,
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Draw what lies between pictures (unCLIP, section 3.2).

    The embeddings are interpolated spherically, and the starts are cross-faded.

    Args:
        pictures: at least two, in the order of the path.
        model: as for `invert`.
        how: start, seeds, size and settings. Of several tries, one is chosen for the whole path.
        between: number of pictures between two neighbours.
        callback, options: as for `invert`.

    Returns:
        The ascent. Its images are the path's pictures in order, the given ones' inversions
        included, each once for each seed.

    Raises:
        ClipagError: there are fewer than two pictures; an argument is out of range; a file cannot
            be read.
    """
    if len(pictures) < 2:
        raise ClipagError("There is one picture or none: name at least two to interpolate.")
    if between < 0:
        raise ClipagError(f"`between` is {between}: choose 0 or more pictures.")
    loaded = _loaded(model)
    sources = read_sources(pictures, loaded, how.size)
    with torch.no_grad():
        points = embed_images(loaded, sources)
    legs = len(pictures) - 1
    places = torch.linspace(0, legs, legs * (between + 1) + 1, device=points.device)
    targets = [Target(each) for each in slerp_through(points, places)]
    starts = _starts([Target(each) for each in points], loaded, how, sources)
    before = places.long().clamp(max=legs - 1)
    share = (places - before).view(-1, 1, 1, 1, 1, 1)
    starts = torch.lerp(starts[before], starts[before + 1], share)
    return _draw(targets, loaded, how, starts, is_path=True, callback=callback, options=options)


def edit(
    picture: Picture,
    texts: tuple[str, str],
    model: ClipagModel | str | Path = MODEL,
    how: Inversion = FROM_BLURRED,
    *,
    strengths: Sequence[float] = STRENGTHS,
    callback: Callback | None = None,
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Change a picture from one text towards another by unCLIP's text diff (section 3.3).

    The target of each strength is slerp(z_i, norm(z_t − z_t0), strength). All have the same start.

    Args:
        picture: a file or a PIL picture, whose middle square is used.
        texts: what the picture shows, and what it should show.
        model: as for `invert`.
        how: start, seeds, size and settings. Of several tries, one is chosen for all strengths.
        strengths: from 0 (the picture's own embedding) to 1 (the text diff alone); unCLIP's are
            from 0.25 to 0.5.
        callback, options: as for `invert`.

    Returns:
        The ascent. Its images are those of each strength in order, each once for each seed.

    Raises:
        ClipagError: a text is empty, too long, or both mean the same; an argument is out of range;
            a file cannot be read.
    """
    if not strengths:
        raise ClipagError("There is no strength: give at least one.")
    for strength in strengths:
        if not 0 <= strength <= 1:
            raise ClipagError(f"`strengths` holds {strength}: choose shares from 0 to 1.")
    loaded = _loaded(model)
    sources = read_sources([picture], loaded, how.size)
    with torch.no_grad():
        (z,) = embed_images(loaded, sources)
    difference = text_difference(loaded, *texts, options.truncate)
    embeddings = torch.stack([slerp(z, difference, strength) for strength in strengths])
    return draw_embeddings(
        embeddings, loaded, how, sources=sources, anchor=z, callback=callback, options=options
    )


def _loaded(model: ClipagModel | str | Path) -> ClipagModel:
    return model if isinstance(model, ClipagModel) else load_model(model)


def read_sources(pictures: Sequence[Picture], model: ClipagModel, side: int) -> Tensor:
    """Return the middle squares of pictures, (B, 3, side, side) in [0, 1], on the model's device.

    Raises:
        ClipagError: there is no picture, or a file cannot be read.
    """
    if not pictures:
        raise ClipagError("There is no picture: name at least one.")
    squares = [from_pil(open_picture(picture), (side, side)) for picture in pictures]
    return torch.stack(squares).to(model.device)


def _starts(
    targets: Sequence[Target], model: ClipagModel, how: Inversion, sources: Tensor | None
) -> Tensor:
    """Return the starts of the targets' seeds and tries, (B, seeds, tries, 3, S, S)."""
    seeds, tries = seeds_of(how.seed), how.settings_for(model).tries
    if sources is None:
        if how.closeness:
            raise ClipagError(
                f"`closeness` is {how.closeness}, but an embedding has no picture to be close to: "
                "leave it out."
            )
    elif how.closeness == 1:
        blurred = _blurred(sources, how.blur)[:, None, None]
        return blurred.expand(-1, len(seeds), tries, -1, -1, -1)
    init, size = how.init, how.size
    drawn = [starting_images(init, targets, model, size, number, tries) for number in seeds]
    starts = torch.stack(drawn, dim=1)
    if sources is not None:
        starts = torch.lerp(starts, _blurred(sources, how.blur)[:, None, None], how.closeness)
    return starts


def _blurred(images: Tensor, blur: float) -> Tensor:
    """Blur images (B, 3, S, S) by a standard deviation of `blur` times their side."""
    from torchvision.transforms.functional import gaussian_blur

    deviation = blur * images.shape[-1]
    reach = round(3 * deviation)
    if not reach:
        return images
    blurred: Tensor = gaussian_blur(images, 2 * reach + 1, deviation)
    return blurred


def _draw(
    targets: Sequence[Target],
    model: ClipagModel,
    how: Inversion,
    starts: Tensor,
    *,
    is_path: bool = False,
    callback: Callback | None,
    options: RunOptions,
) -> Ascent:
    """Ascend from starts (B, seeds, tries, 3, S, S) to the targets.

    Of the tries, the best is kept: of each picture or, for a path, of all pictures together, which
    thus resemble each other.
    """
    settings, seeds = how.settings_for(model), seeds_of(how.seed)
    canvas = settings.canvas(starts.flatten(0, 2))
    guide = guide_of_tries(
        model,
        [[target] for target in targets for _ in seeds],
        seeds * len(targets),
        settings.tries,
        settings.views,
        options,
    )
    ascent = ascend(
        canvas,
        guide,
        settings.steps,
        callback=callback,
        progress=options.progress,
        tries=1 if is_path else settings.tries,
    )
    losses = ranking_losses(ascent, guide, settings)
    if is_path:
        of_path = losses.view(len(targets), len(seeds), -1).mean(dim=0)
        losses = of_path.repeat(len(targets), 1)
    return best_of_tries(ascent, losses)
