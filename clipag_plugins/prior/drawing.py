"""Load and save priors, and let them turn prompts into targets."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..arguments import RunOptions
from ..base import ClipagModel
from ..errors import ClipagError
from ..files import write_beside
from ..targets import Prompt, Target, prompt_targets
from .autoregressive import AutoregressivePrior
from .diffusion import DiffusionPrior
from .network import KINDS, Prior, Shape, condition_of

# What safetensors, json and torch raise for files that are damaged or something else.
UNREADABLE = (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError)
CANDIDATES = 2  # samples of an embedding, of which the one nearest to the text is taken
TEXTS_AT_ONCE = 64
# Of the seed of another try at the same picture.
SEED_STRIDE = 2**62 - 57


def build(shape: Shape) -> Prior:
    """Build a prior, untrained."""
    return DiffusionPrior(shape) if shape.kind == "diffusion" else AutoregressivePrior(shape)


def fingerprint(model: ClipagModel) -> str:
    """Return a digest of a model's image tower: embeddings of other towers mean something else."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.visual.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_prior(prior: Prior, model: ClipagModel, path: Path) -> None:
    """Write a prior of a model as .safetensors, in float16."""
    state = {name: value.half().contiguous() for name, value in prior.state_dict().items()}
    metadata = {
        "prior": json.dumps(vars(prior.shape)),
        "model": model.name,
        "tower": fingerprint(model),
    }
    with write_beside(path) as temporary:
        save_file(state, temporary, metadata)


def load_prior(path: str | Path, model: ClipagModel) -> Prior:
    """Load a prior that `clipag prior` trained, frozen, in float32, on the model's device.

    Raises:
        ClipagError: there is no such file, it is not a prior, or it is another model's.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipagError(
            f"`prior` is {str(path)!r}, and there is no such file: train one by clipag prior."
            if str(path) not in KINDS
            else f"No {path} prior comes with this package yet: train one by clipag prior, and "
            "name its file."
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Without memory until the file's tensors fit: it may claim any shape.
            with torch.device("meta"):
                prior = build(Shape(**json.loads(metadata["prior"])))
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            prior.load_state_dict(state, assign=True)
    except UNREADABLE as error:
        raise ClipagError(f"{path} is not a prior: train one by clipag prior.") from error
    if metadata.get("tower") != fingerprint(model):
        raise ClipagError(
            f"{path} was trained for another image tower than that of {model.name}: train it again."
        )
    if not all(value.isfinite().all() for value in prior.state_dict().values()):
        raise ClipagError(f"{path} is damaged: it holds values that are not finite.")
    return prior.to(model.device).eval().requires_grad_(False)


@torch.no_grad()
def sample_embeddings(
    prior: Prior,
    model: ClipagModel,
    texts: Sequence[str],
    seeds: Sequence[int],
    guidance: float | None = None,
    truncate: bool = False,
) -> Tensor:
    """Draw image embeddings of texts, (texts, seeds, D), of unit length.

    Of two samples, the one with the larger dot product with z_t is taken (unCLIP, section 2.2).

    Args:
        prior: trained for the model.
        model: encodes the texts.
        texts: what pictures should show.
        seeds: the same seed gives the same embedding, alone or in a batch.
        guidance: scale of the classifier-free guidance; by default what suits the prior.
        truncate: cut texts of more than 77 tokens instead of refusing them.

    Raises:
        ClipagError: a text is empty or too long.
    """
    guidance = prior.guidance if guidance is None else guidance
    parts = []
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        chunk = texts[first : first + TEXTS_AT_ONCE]
        condition = condition_of(model, chunk, truncate).repeated(len(seeds) * CANDIDATES)
        generators = [
            torch.Generator().manual_seed((seed + number * SEED_STRIDE) % 2**63)
            for _ in chunk
            for seed in seeds
            for number in range(CANDIDATES)
        ]
        samples = prior.sample(condition, generators, guidance)
        similarity = (samples * condition.embeddings).sum(dim=1).view(-1, CANDIDATES)
        best = similarity.argmax(dim=1)
        numbers = torch.arange(len(best), device=best.device) * CANDIDATES + best
        parts.append(samples[numbers].view(len(chunk), len(seeds), -1))
    return torch.cat(parts)


def picture_targets(
    model: ClipagModel, prompts: Sequence[Prompt], seeds: Sequence[int], options: RunOptions
) -> list[list[Target]]:
    """Return the targets of each picture: of the first prompt for each seed, then of the second.

    With `options.prior`, a text's target is an image embedding that the prior draws for the seed.

    Raises:
        ClipagError: `prompt_targets` refuses a prompt, or `load_prior` refuses the prior.
    """
    of_prompts = prompt_targets(model, prompts, options.truncate)
    targets = [of_prompt for of_prompt in of_prompts for _ in seeds]
    if options.prior is None:
        return targets
    prior = load_prior(options.prior, model)
    numbers = [number for number, prompt in enumerate(prompts) if isinstance(prompt, str)]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts:
        embeddings = sample_embeddings(prior, model, texts, seeds, truncate=options.truncate)
        for number, of_text in zip(numbers, embeddings, strict=True):
            for place, embedding in enumerate(of_text, number * len(seeds)):
                targets[place] = [Target(embedding)]
    return targets
