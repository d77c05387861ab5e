"""CLIP's tokenizer, with OpenAI's `tokenize` signature."""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

CONTEXT_LENGTH = 77


@lru_cache
def _tokenizer() -> Any:
    """open_clip's tokenizer, read from its file: the whole package takes seconds to import."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise ImportError("open_clip is missing: pip install open_clip_torch")
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("clipag_plugins._open_clip_tokenizer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported: reinstall open_clip_torch")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def tokenize(
    texts: str | list[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False
) -> torch.Tensor:
    """Turn texts into CLIP's BPE tokens, as OpenAI's `clip.tokenize` does.

    Args:
        texts: one text or a list of them.
        context_length: number of positions; 77 for every CLIP model.
        truncate: cut texts that are too long instead of refusing them.

    Returns:
        (len(texts), context_length) int64, padded with 0 after the end-of-text token.

    Raises:
        RuntimeError: a text is too long and `truncate` is false.
    """
    if isinstance(texts, str):
        texts = [texts]
    tokenizer = _tokenizer()
    result = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        if len(tokens) > context_length:
            if not truncate:
                raise RuntimeError(f"Input {text} is too long for context length {context_length}")
            tokens = [*tokens[: context_length - 1], tokenizer.eot_token_id]
        result[row, : len(tokens)] = torch.tensor(tokens)
    return result
