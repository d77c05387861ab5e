"""CLIP's tokenizer, with OpenAI's `tokenize` signature."""

from functools import lru_cache
from typing import Any

import torch

CONTEXT_LENGTH = 77


@lru_cache
def _tokenizer() -> Any:
    from .clip.simple_tokenizer import SimpleTokenizer

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
    tokenizer = _tokenizer()
    result = torch.zeros(len(texts), context_length, dtype=torch.int)
    for row, text in enumerate(texts):
        tokens = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        if len(tokens) > context_length:
            if not truncate:
                raise RuntimeError(f"Input {text} is too long for context length {context_length}")
            tokens = [*tokens[: context_length - 1], tokenizer.eot_token_id]
        result[row, : len(tokens)] = torch.tensor(tokens)
    return result
