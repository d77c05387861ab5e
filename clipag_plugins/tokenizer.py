"""CLIP's tokenizer, with OpenAI's `tokenize` signature."""

from functools import cache

import torch

from .bpe import END, START, SimpleTokenizer

CONTEXT_LENGTH = 77


@cache
def shared_tokenizer() -> SimpleTokenizer:
    """Return the one tokenizer of this process; reading the vocabulary takes a moment."""
    return SimpleTokenizer()


def tokenize(
    texts: str | list[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False
) -> torch.Tensor:
    """Turn texts into CLIP's BPE tokens, as OpenAI's `clip.tokenize` does.

    Args:
        texts: one text or a list of them.
        context_length: number of positions; 77 for every CLIP model.
        truncate: cut texts that are too long instead of refusing them.

    Returns:
        (len(texts), context_length) int32, padded with 0 after the end-of-text token.

    Raises:
        RuntimeError: a text is too long and `truncate` is false.
    """
    if isinstance(texts, str):
        texts = [texts]
    tokenizer = shared_tokenizer()
    start, end = tokenizer.encoder[START], tokenizer.encoder[END]
    result = torch.zeros(len(texts), context_length, dtype=torch.int)
    for row, text in enumerate(texts):
        tokens = [start, *tokenizer.encode(text), end]
        if len(tokens) > context_length:
            if not truncate:
                raise RuntimeError(f"Input {text} is too long for context length {context_length}")
            tokens = [*tokens[: context_length - 1], end]
        result[row, : len(tokens)] = torch.tensor(tokens)
    return result
