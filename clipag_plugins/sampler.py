"""Text to image with no generator: pixel ascent along CLIPAG's gradient.

It has the paper's three parts (Ganz & Elad, WACV 2024, section 5; supplement, section 1.3): a
start drawn from a mixture of Gaussians, views, and the similarity to the text as the only loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from . import mixture
from .arguments import RunOptions, check_extent, check_views, seeds_of
from .ascent import Ascent, Callback, ascend
from .base import INPUT_RESOLUTION, ClipagModel, embed_images
from .canvas import PixelCanvas, ThresholdedCanvas
from .defaults import MODEL, SIDE
from .errors import ClipagError
from .guide import Guide, MakeViews
from .hub import load_model
from .pictures import from_pil, read_picture, read_square, save_png, to_pil, upright
from .targets import Target, prompt_targets
from .views import Views, one_view

__all__ = [
    "SamplerSettings",
    "from_pil",
    "generate",
    "read_picture",
    "read_square",
    "sample",
    "save_png",
    "settings_for",
    "starting_images",
    "to_pil",
]

CANDIDATES_A_CLASS = 2
CANDIDATES_AT_ONCE = 100
MOST_TRIES = 256
RANKING_VIEWS = 32
NOISE_MEAN, NOISE_DEVIATION = 0.5, 0.2  # of `init="noise"`


@dataclass(frozen=True)
class SamplerSettings:
    """What suits a model: steps, views, the canvas, and the number of tries."""

    steps: int
    views: Views
    canvas: Callable[[Tensor], PixelCanvas]
    tries: int = 1

    def views_of(self, count: int | None) -> MakeViews:
        """Return `count` views in the proportion of these; None is these, 1 the image itself."""
        if count is None:
            return self.views
        if count == 1:
            return one_view
        patches = round(count * self.views.patch_views / self.views.count)
        return replace(self.views, global_views=count - patches, patch_views=patches)

    def tries_of(self, count: int | None, init: str | Path | Image.Image) -> int:
        """Return the number of tries of a picture: 1 if `init` is a picture, the only start.

        Raises:
            ClipagError: `count` is out of range, or is above 1 with a picture as `init`.
        """
        has_many_starts = init in ("gmm", "noise") or str(init).endswith(".safetensors")
        if count is None:
            return self.tries if has_many_starts else 1
        if not 1 <= count <= MOST_TRIES:
            raise ClipagError(f"`tries` is {count}: choose from 1 to {MOST_TRIES}.")
        if count > 1 and not has_many_starts:
            raise ClipagError(
                f"`tries` is {count}, but a picture is only one start: leave `tries` out."
            )
        return count


# The settings of the authors' notebook, for their ViT-B/32 and any other full-size tower.
NOTEBOOK_SETTINGS = SamplerSettings(100, Views(), ThresholdedCanvas)
# Chosen by the independent evaluator on 100 captions that no reported figure uses.
EMBEDDED_SETTINGS = SamplerSettings(
    16,
    Views(
        global_views=4,
        patch_views=0,
        noise=0.02,
        translate=0.08,
        scale=(0.85, 1.15),
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        cutout=0.0,
    ),
    lambda start: PixelCanvas(start, step_size=0.01),
    tries=4,
)


def settings_for(model: ClipagModel) -> SamplerSettings:
    """Return the default settings of a model."""
    # A tower below CLIP's 224 pixels is like the embedded ones, whatever its name.
    is_small = model.visual.native_size < INPUT_RESOLUTION
    return EMBEDDED_SETTINGS if is_small else NOTEBOOK_SETTINGS


def generate(
    prompt: str | Sequence[str],
    model: ClipagModel | str | Path = MODEL,
    *,
    steps: int | None = None,
    seed: int | Sequence[int] = 0,
    size: int = SIDE,
    views: int | None = None,
    init: str | Path | Image.Image = "gmm",
    tries: int | None = None,
    options: RunOptions = RunOptions(),
) -> Image.Image | list[Image.Image]:
    """Draw a prompt. Several prompts or seeds are drawn as one batch and returned as a list.

    Args:
        prompt: what to draw, or a list of prompts.
        model: a loaded model, or what `load_model` takes.
        steps: number of updates; by default what suits the model.
        seed: the same seed gives the same picture on the same machine, alone or in a batch. With
            several seeds every prompt is drawn once for each; the pictures of the first prompt
            come first.
        size: side of the picture in pixels, 16 to 2048.
        views: views for each update; 1 is the picture itself, without augmentation; by default
            what suits the model.
        init: "gmm" (the paper's mixture), "noise", a mixture of your own (.safetensors, made by
            `python -m clipag_plugins.finetune.embedded.starts`), or a picture (path or PIL).
        tries: ascents for each picture, each from another start, of which the model keeps the one
            that it likes best. By default what suits the model; 1 if `init` is a picture.
        options: precision, memory, compilation and progress bar.

    Raises:
        ClipagError: an argument is out of range, or a file cannot be read.
    """
    if isinstance(model, str | Path):
        model = load_model(model)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    ascent = sample(
        prompts, model, steps=steps, seed=seed, size=size, views=views, init=init, tries=tries,
        options=options,
    )  # fmt: skip
    pictures = [to_pil(image) for image in ascent.images]
    return pictures[0] if isinstance(prompt, str) and isinstance(seed, int) else pictures


def sample(
    prompts: Sequence[str],
    model: ClipagModel,
    *,
    steps: int | None = None,
    seed: int | Sequence[int] = 0,
    size: int = SIDE,
    views: int | None = None,
    init: str | Path | Image.Image = "gmm",
    tries: int | None = None,
    callback: Callback | None = None,
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Do what `generate` does, and return tensors; the arguments are described there.

    `callback` is called as `ascend` says, with the images of all tries. The result's `rows` are
    the numbers of the tries that were kept. Ctrl-C ends the ascent with the best so far.
    """
    settings = settings_for(model)
    steps = settings.steps if steps is None else steps
    check_extent(steps, size)
    check_views(views)
    tries = settings.tries_of(tries, init)
    seeds = seeds_of(seed)
    targets = prompt_targets(model, prompts, options.truncate)
    starts = [starting_images(init, targets, model, size, number, tries) for number in seeds]
    guide = Guide(
        model,
        [[target] for target in targets for _ in seeds for _ in range(tries)],
        settings.views_of(views),
        seeds=[number for number in seeds for _ in range(tries)] * len(targets),
        options=options,
    )
    canvas = settings.canvas(torch.stack(starts, dim=1).flatten(0, 2))
    ascent = ascend(canvas, guide, steps, callback=callback, progress=options.progress)
    if tries == 1:
        return ascent
    # A few views of an ascent are too noisy to rank its outcomes.
    ranking_views = guide.views
    if 1 < guide.views.count < RANKING_VIEWS:
        ranking_views = settings.views_of(RANKING_VIEWS)
    try:
        with torch.no_grad():
            losses = guide.loss(ascent.images, ranking_views)
    except KeyboardInterrupt:
        losses, ascent.interrupted = ascent.losses, True
    return best_of_tries(ascent, losses.view(-1, tries))


def best_of_tries(ascent: Ascent, losses: Tensor) -> Ascent:
    """Keep one of each image's tries: the one with the lowest of the losses (B, tries)."""
    best = losses.argmin(dim=1)
    rows = torch.arange(len(losses), device=best.device) * losses.shape[1] + best
    return replace(
        ascent,
        images=ascent.images[rows],
        losses=ascent.losses[rows],
        state={name: values[rows] for name, values in ascent.state.items()},
        rows=rows.tolist(),
    )


def starting_images(
    init: str | Path | Image.Image,
    targets: Sequence[Target],
    model: ClipagModel,
    size: int,
    seed: int,
    tries: int = 1,
) -> Tensor:
    """Return the starts of the ascents, (B, tries, 3, size, size): an image a target and try."""
    generator = torch.Generator().manual_seed(seed)
    if init == "noise":
        noise = torch.randn(tries, 3, size, size, generator=generator)
        noise = noise * NOISE_DEVIATION + NOISE_MEAN
        start = noise.clamp(0, 1).expand(len(targets), -1, -1, -1, -1)
    elif init == "gmm" or str(init).endswith(".safetensors"):
        gaussians = mixture.load(None if init == "gmm" else Path(str(init)))
        start = _nearest_samples(gaussians, targets, model, size, generator, tries)
    else:
        picture = upright(init) if isinstance(init, Image.Image) else read_picture(Path(init))
        start = from_pil(picture, (size, size)).expand(len(targets), tries, -1, -1, -1)
    # Pixels stay float32 whatever the model is: small steps vanish in half precision.
    return start.to(model.device, torch.float32)


def _nearest_samples(
    gaussians: mixture.GaussianMixture,
    targets: Sequence[Target],
    model: ClipagModel,
    size: int,
    generator: torch.Generator,
    tries: int,
) -> Tensor:
    """Sample a mixture, and keep what is most similar to each target, (B, tries, 3, size, size)."""
    # Small samples are judged at the model's own side; only the chosen ones are enlarged to `size`.
    candidates = gaussians.sample(CANDIDATES_A_CLASS * tries, generator).to(model.device)
    side = model.visual.native_size
    with torch.no_grad():
        z = torch.cat(
            [
                embed_images(model, mixture.enlarge(chunk, side))
                for chunk in candidates.split(CANDIDATES_AT_ONCE)
            ]
        )
    embeddings = torch.stack([target.embedding for target in targets])
    # Each try chooses among its own candidates, equally many of every class.
    nearest = (embeddings @ z.T).view(len(targets), -1, tries).argmax(dim=1)  # (B, tries)
    chosen = candidates[nearest * tries + torch.arange(tries, device=nearest.device)]
    starts: Tensor = mixture.enlarge(chosen.flatten(0, 1), size).unflatten(0, nearest.shape)
    return starts
