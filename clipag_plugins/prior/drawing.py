"""Let priors turn prompts into targets."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import RunOptions
from ..base import ClipagModel
from ..targets import Prompt, Target, prompt_targets
from .files import load_prior
from .network import Prior, condition_of

CANDIDATES = 2  # samples of an embedding, of which the one nearest to the text is taken
TEXTS_AT_ONCE = 64
# Of the seed of another try at the same picture.
SEED_STRIDE = 2**62 - 57


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
