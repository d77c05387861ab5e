"""Text to image with no generator: pixel ascent along CLIPAG's gradient.

The paper's three blocks (Ganz & Elad, WACV 2024, section 5; supplement, section 1.3): a
start drawn from a mixture of Gaussians, views, and nothing but CLIPAG's similarity.
"""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from . import gmm
from .ascent import Ascent, Callback, ascend
from .canvas import PixelCanvas, ThresholdedCanvas
from .errors import ClipagError
from .files import write_beside
from .guide import Guide, MakeViews, Target, text_target
from .model import INPUT_RESOLUTION, ClipagModel, embed_images, load_clipag
from .views import Views, one_view

SMALLEST, LARGEST = 16, 2048
LARGEST_PICTURE = 64_000_000  # pixels of a picture that is read
ANIMATIONS = ("GIF", "PNG", "WEBP")  # other formats of several pictures hold pages or previews
CANDIDATES_A_CLASS = 2
MOST_VIEWS = 4096
MOST_TRIES = 256
RANKING_VIEWS = 32


@dataclass(frozen=True)
class Settings:
    """How a model likes to be ascended: steps, views, the canvas to do it on, and tries."""

    steps: int
    views: Views
    canvas: Callable[[Tensor], PixelCanvas]
    tries: int = 1

    def views_of(self, count: int | None) -> MakeViews:
        """Return these views, or `count` of them in the same proportion; 1 is the image itself."""
        if count is None:
            return self.views
        if count == 1:
            return one_view
        total = self.views.global_views + self.views.patch_views
        patches = round(count * self.views.patch_views / total)
        return replace(self.views, global_views=count - patches, patch_views=patches)

    def tries_of(self, count: int | None, init: str | Path | Image.Image) -> int:
        """Return how many tries a picture has, of which a given start needs but one.

        Raises:
            ClipagError: `count` is out of its range, or there is nothing to draw starts from.
        """
        drawn = init in ("gmm", "noise") or str(init).endswith(".safetensors")
        if count is None:
            return self.tries if drawn else 1
        if not 1 <= count <= MOST_TRIES:
            raise ClipagError(f"tries is {count}: choose from 1 to {MOST_TRIES}.")
        if count > 1 and not drawn:
            raise ClipagError(f"tries is {count}, but a picture is one start: leave tries out.")
        return count


# The authors' notebook, for their ViT-B/32 and any other full-size tower.
NOTEBOOK = Settings(100, Views(), ThresholdedCanvas)
# Chosen by the independent evaluator on 100 captions that no reported figure uses.
EMBEDDED = Settings(
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


def settings_for(model: ClipagModel) -> Settings:
    """Return the default settings of a model."""
    # Towers that see less than CLIP's 224 pixels are kin of the embedded ones, by any name.
    return EMBEDDED if model.visual.native_size < INPUT_RESOLUTION else NOTEBOOK


def generate(
    prompt: str | Sequence[str],
    model: ClipagModel | str | Path = "clipag-mini",
    *,
    steps: int | None = None,
    seed: int | Sequence[int] = 0,
    size: int = 224,
    views: int | None = None,
    init: str | Path | Image.Image = "gmm",
    tries: int | None = None,
    prefix: str = "",
    truncate: bool = False,
    precision: str = "auto",
    max_views: int = 64,
    compile: bool = False,
    progress: bool = True,
) -> Image.Image | list[Image.Image]:
    """Draw a prompt; several prompts or seeds are drawn as one batch and come back as a list.

    Args:
        prompt: what to draw, or a list of it.
        model: a loaded model, or what `load_clipag` takes.
        steps: updates; by default what suits the model.
        seed: the same seed gives the same picture on the same machine, alone or in a batch.
            Of several seeds each draws every prompt; the first prompt's pictures come first.
        size: side of the picture in pixels, 16 to 2048.
        views: views an update; 1 looks at the picture itself, without augmentation; by
            default what suits the model.
        init: "gmm" (the paper's), "noise", a mixture of your own (.safetensors, made by
            `finetune.gmm`), or a picture (path or PIL) to start from.
        tries: ascents a picture, each from another start; the one that the model likes best is
            kept. By default what suits the model; 1 where `init` is a picture.
        prefix: put before every prompt, as "oil painting of" (paper, Figure 18).
        truncate: cut prompts of more than 77 tokens instead of refusing them.
        precision: "auto" (the fastest here), "float32", "bfloat16" or "float16": see `Guide`.
        max_views: views that the model sees at once; fewer need less memory.
        compile: pass the model through `torch.compile` first: see `Guide`.
        progress: show a progress bar.

    Raises:
        ClipagError: an argument is out of its range, or a file cannot be read.
    """
    if isinstance(model, str | Path):
        model = load_clipag(model)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    ascent = sample(
        prompts, model, steps=steps, seed=seed, size=size, views=views, init=init,
        tries=tries, prefix=prefix, truncate=truncate, precision=precision,
        max_views=max_views, compile=compile, progress=progress,
    )  # fmt: skip
    pictures = [to_pil(image) for image in ascent.images]
    return pictures[0] if isinstance(prompt, str) and isinstance(seed, int) else pictures


def sample(
    prompts: Sequence[str],
    model: ClipagModel,
    *,
    steps: int | None = None,
    seed: int | Sequence[int] = 0,
    size: int = 224,
    views: int | None = None,
    init: str | Path | Image.Image = "gmm",
    tries: int | None = None,
    prefix: str = "",
    truncate: bool = False,
    precision: str = "auto",
    max_views: int = 64,
    compile: bool = False,
    callback: Callback | None = None,
    progress: bool = True,
) -> Ascent:
    """Do what `generate` does, and return the tensors: see there for the arguments.

    `callback` is called by the loop as `ascend` says, with the images of all tries; `rows` of what
    is returned says which were kept. Ctrl-C ends it with the best so far.
    """
    settings = settings_for(model)
    steps = settings.steps if steps is None else steps
    check_extent(steps, size)
    if views is not None and not 1 <= views <= MOST_VIEWS:
        raise ClipagError(f"views is {views}: choose from 1 to {MOST_VIEWS}.")
    tries = settings.tries_of(tries, init)
    seeds = seeds_of(seed)
    targets = prompt_targets(model, prompts, prefix, truncate)
    starts = [starting_images(init, targets, model, size, number, tries) for number in seeds]
    guide = Guide(
        model,
        [[target] for target in targets for _ in seeds for _ in range(tries)],
        settings.views_of(views),
        seeds=[number for number in seeds for _ in range(tries)] * len(targets),
        precision=precision,
        max_views=max_views,
        compile=compile,
    )
    canvas = settings.canvas(torch.stack(starts, dim=1).flatten(0, 2))
    ascent = ascend(canvas, guide, steps, callback=callback, progress=progress)
    if tries == 1:
        return ascent
    if 1 < guide.views.count < RANKING_VIEWS:  # too few to tell which picture is best
        guide.views = settings.views_of(RANKING_VIEWS)
    try:
        with torch.no_grad():
            losses = guide.loss(ascent.images)
    except KeyboardInterrupt:
        losses, ascent.interrupted = ascent.losses, True
    return ascent.best_of(losses.view(-1, tries))


def check_extent(steps: int, size: int) -> None:
    """Raise ClipagError unless there is a step to take and a size that can be drawn."""
    if steps < 1:
        raise ClipagError(f"steps is {steps}: an ascent takes at least 1.")
    if not SMALLEST <= size <= LARGEST:
        raise ClipagError(f"size is {size}: choose a side from {SMALLEST} to {LARGEST} pixels.")


def seeds_of(seed: int | Sequence[int]) -> list[int]:
    """Return one or several seeds as a list.

    Raises:
        ClipagError: there is none, or one that torch does not take.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    for number in seeds:
        if not 0 <= number < 2**63:
            raise ClipagError(f"seed is {number}: choose a number from 0 to 2⁶³ − 1.")
    if not seeds:
        raise ClipagError("There is no seed: give a number, or several.")
    return seeds


def prompt_targets(
    model: ClipagModel, prompts: Sequence[str], prefix: str, truncate: bool
) -> list[Target]:
    """Return the target of each prompt, with `prefix` before it.

    Raises:
        ClipagError: there is no prompt, or one that `text_target` does not take.
    """
    if not prompts:
        raise ClipagError("There is no prompt: say what to draw.")
    texts = [f"{prefix} {prompt}".strip() if prompt.strip() else prompt for prompt in prompts]
    return [text_target(model, text, truncate=truncate) for text in texts]


def starting_images(
    init: str | Path | Image.Image,
    targets: Sequence[Target],
    model: ClipagModel,
    size: int,
    seed: int,
    tries: int = 1,
) -> Tensor:
    """Return what the ascents start from, (B, tries, 3, size, size): one image a target and try."""
    generator = torch.Generator().manual_seed(seed)
    if init == "noise":
        noise = torch.randn(tries, 3, size, size, generator=generator) * 0.2 + 0.5
        start = noise.clamp(0, 1).expand(len(targets), -1, -1, -1, -1)
    elif init == "gmm" or str(init).endswith(".safetensors"):
        # Sampled small and judged small; only the chosen ones are enlarged.
        mixture = gmm.load(None if init == "gmm" else Path(str(init)))
        candidates = mixture.sample(CANDIDATES_A_CLASS * tries, generator).to(model.device)
        side = model.visual.native_size
        with torch.no_grad():
            z = torch.cat(
                [embed_images(model, gmm.enlarge(c, side)) for c in candidates.split(100)]
            )
        goals = torch.stack([target.embedding for target in targets])
        # Each try has candidates of its own, of every class as many.
        nearest = (goals @ z.T).view(len(goals), -1, tries).argmax(dim=1)  # (B, tries)
        chosen = candidates[nearest * tries + torch.arange(tries, device=nearest.device)]
        start = gmm.enlarge(chosen.flatten(0, 1), size).unflatten(0, nearest.shape)
    else:
        picture = upright(init) if isinstance(init, Image.Image) else read_picture(Path(init))
        start = from_pil(picture, (size, size)).expand(len(targets), tries, -1, -1, -1)
    # Pixels stay float32 whatever the model is: small steps vanish in half precision.
    return start.to(model.device, torch.float32)


def read_picture(path: Path) -> Image.Image:
    """Read a picture as RGB, upright and on white.

    Raises:
        ClipagError: it is missing, not a picture, or larger than a picture should be.
    """
    return on_white(read_rgba(path))


def read_rgba(path: Path, still: bool = False) -> Image.Image:
    """Read a picture as RGBA, turned as its EXIF says; of an animation, the first frame.

    Args:
        path: a file in any format that Pillow knows, of 8 or 16 bits a channel.
        still: refuse animations instead.

    Raises:
        ClipagError: it is missing, not a picture that can be read, or larger than a picture
            should be.
    """
    try:
        with Image.open(path) as file:
            # Judged by the header, before a single pixel is decoded.
            if file.width * file.height > LARGEST_PICTURE:
                raise ClipagError(
                    f"{path} has {file.width} × {file.height} pixels: "
                    f"shrink it to at most {LARGEST_PICTURE // 1_000_000} megapixels."
                )
            if still and file.format in ANIMATIONS and getattr(file, "is_animated", False):
                raise ClipagError(
                    f"{path} is an animation: write its frames as pictures to a folder, and name "
                    "the folder."
                )
            return _rgba(file)
    except ClipagError:  # a ValueError too
        raise
    except FileNotFoundError as error:
        raise ClipagError(f"There is no picture at {path}.") from error
    except Image.DecompressionBombError as error:
        raise ClipagError(f"{path} has too many pixels to be a picture: shrink it.") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        KeyError,
        struct.error,
        zlib.error,
    ) as error:
        raise ClipagError(f"{path} is not a picture that can be read.") from error


def read_square(path: Path, side: int) -> Tensor:
    """Read a picture, cropped to a square, as (3, side, side) in [0, 1].

    Raises:
        ClipagError: it cannot be read, or `side` is out of its range.
    """
    check_extent(1, side)
    return from_pil(read_picture(path), (side, side))


def upright(picture: Image.Image) -> Image.Image:
    """Return a picture as RGB, turned as its EXIF says and on white."""
    return on_white(_rgba(picture))


def on_white(picture: Image.Image) -> Image.Image:
    """Return an RGBA picture as RGB, on white."""
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _rgba(picture: Image.Image) -> Image.Image:
    turned = ImageOps.exif_transpose(picture)
    if turned.mode == "F":
        name = getattr(picture, "filename", "") or "the picture"
        raise ClipagError(f"The pixels of {name} are floating-point: save it with 8 or 16 bits.")
    if turned.mode.startswith("I"):
        # 16 bits: Pillow would cut off all that is above 255.
        turned = Image.fromarray((np.array(turned) / 257).clip(0, 255).astype(np.uint8))
    return turned.convert("RGBA")


def from_pil(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """Crop and scale an RGB picture to (width, height), and return it as (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(ImageOps.fit(picture, size))).permute(2, 0, 1) / 255


def to_pil(image: Tensor) -> Image.Image:
    """Turn an image (3, H, W) in [0, 1] into a PIL picture."""
    rounded = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(rounded.cpu().permute(1, 2, 0).numpy())


def save_png(picture: Image.Image, path: Path, facts: Mapping[str, object]) -> None:
    """Write a PNG that carries `facts` (prompt, seed, model, …) as text chunks."""
    chunks = PngInfo()
    for key, value in facts.items():
        chunks.add_itxt(key, str(value))
    with write_beside(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=chunks)
