"""CLIP's byte-pair encoding, with the names of OpenAI's `clip.simple_tokenizer`.

open_clip has a tokenizer too, but importing open_clip takes several seconds. So only its copy of
OpenAI's vocabulary is read, which is data and is checked before use.
"""

import gzip
import hashlib
import html
import math
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from .errors import ClipagError

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SHA256 = "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8"
# 49,408 tokens: each of the 256 bytes inside and at the end of a word, merges, and two marks.
MERGES = 49_408 - 2 * 256 - 2


@cache
def default_bpe() -> str:
    """Return the path of OpenAI's vocabulary, which open_clip has a copy of.

    Raises:
        ClipagError: open_clip is not installed, or has no such file.
    """
    package = find_spec("open_clip")  # does not import it
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
        if path.is_file():
            return str(path)
    raise ClipagError("open_clip's CLIP vocabulary is missing: pip install open_clip_torch.")


def _read_merges(path: str) -> list[tuple[str, ...]]:
    """Read the merges of a vocabulary file, the most frequent first."""
    data = gzip.decompress(Path(path).read_bytes())
    if path == default_bpe() and hashlib.sha256(data).hexdigest() != VOCABULARY_SHA256:
        raise ClipagError(f"{path} is not CLIP's vocabulary: reinstall open_clip_torch.")
    lines = data.decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1 : MERGES + 1]]  # the first line is a header


@cache
def bytes_to_unicode() -> dict[int, str]:
    """Map every byte to one printable character, in the vocabulary's order.

    Printable Latin-1 characters stand for themselves; the other bytes get characters from 256 up.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
                 *range(ord("®"), ord("ÿ") + 1)]  # fmt: skip
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    return characters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def get_pairs(word: tuple[str, ...]) -> set[tuple[str, str]]:
    """Return the pairs of neighbouring symbols in a word."""
    return set(pairwise(word))


def basic_clean(text: str) -> str:
    """Repair broken Unicode and resolve HTML entities, twice as OpenAI does."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.strip()  # nothing to repair: ftfy takes longer to import than the rest

    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def whitespace_clean(text: str) -> str:
    """Replace every run of white space by one space."""
    return " ".join(text.split())


class SimpleTokenizer:
    """CLIP's byte-pair encoding, as OpenAI's class of this name does it.

    Args:
        bpe_path: a vocabulary in OpenAI's format; by default OpenAI's own.
    """

    def __init__(self, bpe_path: str | None = None):
        import regex

        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        merges = _read_merges(bpe_path or default_bpe())
        characters = list(self.byte_encoder.values())
        vocabulary = [*characters, *(character + "</w>" for character in characters)]
        vocabulary += ["".join(merge) for merge in merges] + [START, END]
        self.encoder = {token: number for number, token in enumerate(vocabulary)}
        self.decoder = {number: token for token, number in self.encoder.items()}
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.cache = {START: START, END: END}
        marks = f"{regex.escape(START)}|{regex.escape(END)}"
        words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        self.pat = regex.compile(f"{marks}|{words}", regex.IGNORECASE)

    def bpe(self, token: str) -> str:
        """Return a word's symbols, separated by spaces."""
        if token in self.cache:
            return self.cache[token]
        word = (*token[:-1], token[-1] + "</w>")
        while pairs := get_pairs(word):
            best = min(pairs, key=lambda pair: self.bpe_ranks.get(pair, math.inf))
            if best not in self.bpe_ranks:
                break
            word = _merge(word, best)
        self.cache[token] = " ".join(word)
        return self.cache[token]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without the marks of its start and end."""
        tokens: list[int] = []
        for word in self.pat.findall(whitespace_clean(basic_clean(text)).lower()):
            characters = "".join(self.byte_encoder[byte] for byte in word.encode("utf-8"))
            tokens += [self.encoder[symbol] for symbol in self.bpe(characters).split(" ")]
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens; a space follows each word."""
        characters = "".join(self.decoder[int(token)] for token in tokens)
        text = bytes(self.byte_decoder[character] for character in characters)
        return text.decode("utf-8", errors="replace").replace("</w>", " ")


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Replace every occurrence of a pair of symbols in a word by their concatenation."""
    merged: list[str] = []
    position = 0
    while position < len(word):
        length = 2 if word[position : position + 2] == pair else 1
        merged.append("".join(word[position : position + length]))
        position += length
    return tuple(merged)
