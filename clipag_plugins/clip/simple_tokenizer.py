"""OpenAI's `clip.simple_tokenizer`, over open_clip's tokenizer."""

import importlib.util
from pathlib import Path
from types import ModuleType

import regex


def _open_clips() -> ModuleType:
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
    return module


_base = _open_clips()
default_bpe = _base.default_bpe
bytes_to_unicode = _base.bytes_to_unicode
get_pairs = _base.get_pairs
basic_clean = _base.basic_clean
whitespace_clean = _base.whitespace_clean

START, END = "<|startoftext|>", "<|endoftext|>"


class SimpleTokenizer(_base.SimpleTokenizer):  # type: ignore[name-defined,misc]
    """CLIP's byte-pair encoding, with OpenAI's spelling of the two special tokens."""

    def __init__(self, bpe_path: str = default_bpe()):
        super().__init__(bpe_path)
        for theirs, ours in zip((self.sot_token_id, self.eot_token_id), (START, END), strict=True):
            del self.encoder[self.decoder[theirs]]
            self.encoder[ours] = theirs
            self.decoder[theirs] = ours
        self.cache = {START: START, END: END}
        words = r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        self.pat = regex.compile(
            regex.escape(START) + "|" + regex.escape(END) + words, regex.IGNORECASE
        )
