"""Train a prior: image embeddings drawn for a caption.

    clipag prior build/weights --kind diffusion
    torchrun --nproc-per-node 8 -m clipag_plugins prior photos.csv --model ViT-B/32

The pictures are encoded once. The same command resumes a run that was killed, and takes the
embeddings of the last run if the data and the image tower are the same.
"""

import json
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
from clipag_plugins.prior.drawing import sample_embeddings
from clipag_plugins.prior.files import build, fingerprint, save_prior
from clipag_plugins.prior.network import Condition, Prior, Shape, condition_of_tokens
from clipag_plugins.tokenizer import tokenize

BATCH = 64  # pictures that are encoded at once
TEXTS_AT_ONCE = 256
HELD_OUT = 20  # one of so many captions is held out of training, to measure
MOST_MEASURED = 256  # captions
RESULT = "prior.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How a prior is trained.

    Attributes:
        kind: "diffusion" or "autoregressive".
        steps: updates.
        batch: pairs of an update, of all processes together.
        rate: peak learning rate, after a warm-up of a tenth of the steps, which then falls to 0.
        decay: weight decay.
        average: decay of the weights' moving average, which is the result.
        dropped: share of texts that are left out, for classifier-free guidance.
        seed: of all random numbers.
        templates: sentences with {} in place of a caption, of which each pair draws one.
        text_length, width, layers, heads, components, buckets: see `prior.network.Shape`.
        save_every: updates between checkpoints.

    Raises:
        ClipagError: a value is out of range.
    """

    kind: str = "diffusion"
    steps: int = 4000
    batch: int = 128
    rate: float = 1e-3
    decay: float = 0.06
    average: float = 0.999
    dropped: float = 0.1
    seed: int = 0
    templates: tuple[str, ...] = ("{}",)
    text_length: int = 32
    width: int = 192
    layers: int = 6
    heads: int = 6
    components: int = 96
    buckets: int = 64
    save_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ClipagError(f"`{name}` is {getattr(self, name)}: choose at least 1.")
        if not all("{}" in template for template in self.templates) or not self.templates:
            raise ClipagError("A template has no {}, which stands for the caption: add it.")

    def shape(self, model: ClipagModel) -> Shape:
        """Return the shape of the prior of a model."""
        token_width = model.token_embedding.weight.shape[1]  # type: ignore[union-attr,index]
        return Shape(
            self.kind, model.visual.output_dim, int(token_width), self.text_length, self.width,
            self.layers, self.heads, self.components, self.buckets,
        )  # fmt: skip


@dataclass(frozen=True)
class EmbeddedPairs:
    """Captions, and the embeddings of pictures of them.

    Attributes:
        captions: without repetitions.
        numbers: of each picture's caption, (N,).
        embeddings: of the pictures, (N, D), of unit length.
    """

    captions: list[str]
    numbers: Tensor
    embeddings: Tensor

    def of_captions(self, numbers: Tensor) -> "EmbeddedPairs":
        """Return the pairs of the captions with these numbers."""
        new = torch.full((len(self.captions),), -1).scatter(0, numbers, torch.arange(len(numbers)))
        rows = (new[self.numbers] >= 0).nonzero()[:, 0]
        captions = [self.captions[number] for number in numbers.tolist()]
        return EmbeddedPairs(captions, new[self.numbers[rows]], self.embeddings[rows])


def encode(source: Source, model: ClipagModel, cache: Path) -> EmbeddedPairs:
    """Encode the pictures of a source, or read `cache` if it has them.

    Under torchrun the first process encodes, and the others read what it wrote.

    Raises:
        ClipagError: no pair of the source can be read.
    """
    units = sources.open_source(source)
    digest = f"{sources.fingerprint([units])} {fingerprint(model)}"
    if processes.rank() == 0 and _read_cache(cache, digest) is None:
        pairs = list(_encoded(units, model))
        if not pairs:
            raise ClipagError(f"Nothing in {source.path} can be read: check the path and captions.")
        captions = [caption for caption, _ in pairs]
        with write_beside(cache) as temporary:
            metadata = {"captions": json.dumps(captions), "digest": digest}
            save_file({"z": torch.stack([z for _, z in pairs])}, temporary, metadata)
    processes.wait()
    cached = _read_cache(cache, digest)
    if cached is None:
        raise ClipagError(f"{cache} cannot be read back: check the disk.")
    return cached


def _read_cache(cache: Path, digest: str) -> EmbeddedPairs | None:
    try:
        with safe_open(cache, "pt") as file:
            metadata, embeddings = file.metadata(), file.get_tensor("z")
    except (OSError, SafetensorError):
        return None
    if metadata["digest"] != digest:
        return None
    captions = json.loads(metadata["captions"])
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    return EmbeddedPairs(list(number), torch.tensor([number[c] for c in captions]), embeddings)


@torch.no_grad()
def _encoded(units: sources.Units, model: ClipagModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the caption and the embedding of every sample that can be read."""
    for images, captions in sources.batches(units, model.visual.native_size, BATCH):
        z = embed_images(model, images.to(model.device) / 255)
        yield from zip(captions, z.cpu().float(), strict=True)


class Captions:
    """The captions of a corpus, encoded once, in every template.

    Args:
        captions: without repetitions.
        templates: sentences with {} in place of a caption.
        model: encodes them.
    """

    @torch.no_grad()
    def __init__(self, captions: list[str], templates: tuple[str, ...], model: ClipagModel):
        self.model = model
        texts = [each.replace("{}", caption) for caption in captions for each in templates]
        self.templates = len(templates)
        self.tokens = tokenize(texts, truncate=True)
        parts = [
            F.normalize(model.encode_words(chunk.to(model.device)).float(), dim=1).cpu()
            for chunk in self.tokens.split(TEXTS_AT_ONCE)
        ]
        self.embeddings = torch.cat(parts)

    def conditions(self, numbers: Tensor, templates: Tensor) -> Condition:
        """Return captions (B,) in templates (B,) as a prior sees them."""
        rows = numbers * self.templates + templates
        device = self.model.device
        tokens, embeddings = self.tokens[rows].to(device), self.embeddings[rows].to(device)
        return condition_of_tokens(self.model, tokens, embeddings)


def train(pairs: EmbeddedPairs, model: ClipagModel, recipe: Recipe, out: Path) -> Path:
    """Train a prior on embedded pairs, and return its file, which `load_prior` takes.

    Args:
        pairs: of the model's image tower.
        model: frozen, on the device to compute on.
        recipe: how to train.
        out: folder of the run, which is made if it is missing. A run in it is resumed.

    Raises:
        ClipagError: the folder holds another run, or the recipe does not suit the data.
        KeyboardInterrupt: as `updates.run` raises it.
    """
    torch.manual_seed(recipe.seed)
    captions = Captions(pairs.captions, recipe.templates, model)
    prior = build(recipe.shape(model)).to(model.device)
    embeddings = pairs.embeddings.to(model.device)
    z_t = captions.embeddings[pairs.numbers * captions.templates].to(model.device)
    prior.fit_statistics(embeddings, z_t)

    def loss_of(step: int) -> Tensor:
        batch = updates.batch_of(len(pairs.numbers), recipe.batch, recipe.seed, step)
        return _loss(prior, captions, embeddings, pairs.numbers, batch, recipe)

    identity = {**asdict(recipe), "tower": fingerprint(model), "pairs": len(pairs.numbers)}
    schedule = updates.Schedule(
        recipe.steps, recipe.rate, recipe.decay, recipe.average, recipe.save_every
    )
    averaged = updates.run(prior, loss_of, schedule, identity, out)
    if processes.rank() == 0:
        save_prior(averaged, model, out / RESULT)
    processes.wait()
    return out / RESULT


def _loss(
    prior: Prior,
    captions: Captions,
    embeddings: Tensor,
    numbers: Tensor,
    batch: tuple[Tensor, torch.Generator],
    recipe: Recipe,
) -> Tensor:
    rows, generator = batch
    templates = torch.randint(captions.templates, (len(rows),), generator=generator)
    condition = captions.conditions(numbers[rows], templates)
    dropped = torch.rand(len(rows), generator=generator) < recipe.dropped
    device = embeddings.device
    return prior.loss(condition, embeddings[rows.to(device)], dropped.to(device), generator)


def split(pairs: EmbeddedPairs, seed: int = 0) -> tuple[EmbeddedPairs, EmbeddedPairs]:
    """Return pairs to train on, and pairs of other captions to measure on.

    Raises:
        ClipagError: there are fewer captions than 2.
    """
    if len(pairs.captions) < 2:
        raise ClipagError("There is one caption: a prior needs pictures of many.")
    order = torch.randperm(len(pairs.captions), generator=torch.Generator().manual_seed(seed))
    count = max(1, len(order) // HELD_OUT)
    return pairs.of_captions(order[count:]), pairs.of_captions(order[:count])


@torch.no_grad()
def measure(
    prior: Prior, model: ClipagModel, training: EmbeddedPairs, held_out: EmbeddedPairs
) -> dict[str, dict[str, float]]:
    """Compare a prior's samples with pictures of captions that it was not trained on.

    Args:
        prior: trained on `training`.
        model: its model.
        training: the pairs that the prior and the baselines know.
        held_out: the pairs to measure on; of many captions, the first 256.

    Returns:
        For each way to guess z_i: "MSE", the mean squared distance to the pictures' embeddings, and
        "similarity", the mean cosine. The ways are: the prior, z_t, the mean of all training
        embeddings, and the mean embedding of the training caption nearest to the text.
    """
    held_out = held_out.of_captions(torch.arange(min(len(held_out.captions), MOST_MEASURED)))
    known = Captions(training.captions, ("{}",), model).embeddings
    z_t = Captions(held_out.captions, ("{}",), model).embeddings
    means = torch.zeros_like(known).index_add(0, training.numbers, training.embeddings)
    counts = torch.bincount(training.numbers, minlength=len(known)).clamp_min(1)
    of_nearest = (means / counts[:, None])[(z_t @ known.T).argmax(dim=1)]
    drawn = sample_embeddings(prior, model, held_out.captions, [0], truncate=True)[:, 0]
    guesses = {
        "prior": drawn.cpu(),
        "z_t": z_t,
        "mean": training.embeddings.mean(dim=0).expand_as(z_t),
        "nearest caption": of_nearest,
    }
    figures = {}
    for name, guess in guesses.items():
        of_pictures, z = guess[held_out.numbers], held_out.embeddings
        figures[name] = {
            "MSE": (of_pictures - z).square().sum(dim=1).mean().item(),
            "similarity": F.cosine_similarity(of_pictures, z).mean().item(),
        }
    return figures
