"""OpenAI's `clip.simple_tokenizer`."""

from clipag_plugins.bpe import (
    SimpleTokenizer,
    basic_clean,
    bytes_to_unicode,
    default_bpe,
    get_pairs,
    whitespace_clean,
)

__all__ = [
    "SimpleTokenizer",
    "basic_clean",
    "bytes_to_unicode",
    "default_bpe",
    "get_pairs",
    "whitespace_clean",
]
