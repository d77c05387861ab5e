"""Train a decoder: a small diffusion model that draws pictures of image embeddings.

    clipag decoder build/weights --out runs/decoder

The pictures are read and encoded once. The same command resumes a run that was killed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from clipag_plugins.base import ClipagModel, embed_images
from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import processes, sources, updates
from clipag_plugins.finetune.settings import Source
from clipag_plugins.prior.decoder import Decoder, DecoderShape
from clipag_plugins.prior.files import fingerprint, save_decoder

BATCH = 64  # pictures that are encoded at once
SKETCHES = 256  # of an update: they cost next to nothing
RESULT = "decoder.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How a decoder is trained.

    Attributes:
        steps: updates.
        batch: pictures of an update, of all processes together.
        rate: peak learning rate, after a warm-up of a tenth of the steps, which then falls to 0.
        decay: weight decay.
        average: decay of the weights' moving average, which is the result.
        dropped: share of embeddings that are left out, for classifier-free guidance.
        seed: of all random numbers.
        side, sketch, channels, patch: see `prior.decoder.DecoderShape`.
        save_every: updates between checkpoints.

    Raises:
        ClipagError: a value is out of range.
    """

    steps: int = 4000
    batch: int = 32
    rate: float = 1e-3
    decay: float = 0.01
    average: float = 0.995
    dropped: float = 0.1
    seed: int = 0
    side: int = 48
    sketch: int = 12
    channels: tuple[int, ...] = (32, 64, 96)
    patch: int = 2
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ClipagError(f"`{name}` is {getattr(self, name)}: choose at least 1.")


@dataclass(frozen=True)
class EmbeddedPictures:
    """Pictures, and their embeddings.

    Attributes:
        pixels: (N, 3, S, S), uint8.
        embeddings: of the pictures and of their mirror images, (N, 2, D), of unit length.
    """

    pixels: Tensor
    embeddings: Tensor


def encode(source: Source, model: ClipagModel, side: int, cache: Path) -> EmbeddedPictures:
    """Read and encode the pictures of a source, or read `cache` if it has them.

    Under torchrun the first process encodes, and the others read what it wrote.

    Raises:
        ClipagError: no picture of the source can be read.
    """
    units = sources.open_source(source)
    digest = f"{sources.fingerprint([units])} {fingerprint(model)} {side}"
    if processes.rank() == 0 and _read_cache(cache, digest) is None:
        batches = list(_encoded(units, model, side))
        if not batches:
            raise ClipagError(f"Nothing in {source.path} can be read: check the path.")
        pixels, embeddings = (torch.cat(each) for each in zip(*batches, strict=True))
        with write_beside(cache) as temporary:
            save_file({"pixels": pixels, "z": embeddings}, temporary, {"digest": digest})
    processes.wait()
    cached = _read_cache(cache, digest)
    if cached is None:
        raise ClipagError(f"{cache} cannot be read back: check the disk.")
    return cached


def _read_cache(cache: Path, digest: str) -> EmbeddedPictures | None:
    try:
        with safe_open(cache, "pt") as file:
            if file.metadata()["digest"] != digest:
                return None
            return EmbeddedPictures(file.get_tensor("pixels"), file.get_tensor("z"))
    except (OSError, SafetensorError):
        return None


@torch.no_grad()
def _encoded(
    units: sources.Units, model: ClipagModel, side: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels (B, 3, S, S) and embeddings (B, 2, D) of the pictures that can be read."""
    for images, _ in sources.batches(units, max(side, model.visual.native_size), BATCH):
        batch = images.to(model.device) / 255
        z = torch.stack([embed_images(model, each) for each in (batch, batch.flip(3))], 1)
        small = F.interpolate(batch, size=(side, side), mode="area")
        yield (small * 255).round().byte().cpu(), z.float().cpu()


def train(pictures: EmbeddedPictures, model: ClipagModel, recipe: Recipe, out: Path) -> Path:
    """Train a decoder on embedded pictures, and return its file, which `load_decoder` takes.

    Args:
        pictures: encoded by the model's image tower.
        model: frozen, on the device to compute on.
        recipe: how to train.
        out: folder of the run, which is made if it is missing. A run in it is resumed.

    Raises:
        ClipagError: the folder holds another run, or diffusers is not installed.
        KeyboardInterrupt: as `updates.run` raises it.
    """
    torch.manual_seed(recipe.seed)
    width = pictures.embeddings.shape[-1]
    shape = DecoderShape(width, recipe.side, recipe.sketch, recipe.channels, recipe.patch)
    decoder = Decoder(shape).to(model.device)
    straight = pictures.embeddings[:, 0].to(model.device)
    decoder.fit_statistics(straight, pictures.pixels.to(model.device).float() / 255)
    decoder.to(memory_format=torch.channels_last)
    thumbnails = F.interpolate(pictures.pixels.float() / 255, size=recipe.sketch, mode="area")

    def mirrored(
        images: Tensor, numbers: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mirror half of the pictures, and return their embeddings and themselves."""
        is_mirrored = torch.rand(len(numbers), generator=generator) < 0.5
        images = torch.where(is_mirrored[:, None, None, None], images.flip(3), images)
        z = pictures.embeddings[numbers, is_mirrored.long()]
        return z.to(model.device), images.to(model.device)

    def loss_of(step: int) -> Tensor:
        count = len(pictures.pixels)
        numbers, generator = updates.batch_of(count, recipe.batch, recipe.seed, step)
        pairs = mirrored(pictures.pixels[numbers].float() / 255, numbers, generator)
        dropped = torch.rand(len(numbers), generator=generator) < recipe.dropped
        loss = decoder.loss(*pairs, dropped.to(model.device), generator)
        numbers = torch.randint(count, (SKETCHES,), generator=generator)
        pairs = mirrored(thumbnails[numbers], numbers, generator)
        return loss + decoder.sketch_loss(*pairs, generator)

    identity = {**asdict(recipe), "tower": fingerprint(model), "pictures": len(pictures.pixels)}
    schedule = updates.Schedule(
        recipe.steps, recipe.rate, recipe.decay, recipe.average, recipe.save_every
    )
    averaged = updates.run(decoder, loss_of, schedule, identity, out)
    if processes.rank() == 0:
        save_decoder(averaged, model, out / RESULT)
    processes.wait()
    return out / RESULT
