"""Check a model's config (open_clip's `model_cfg`) before anything is built from it.

Configs come with weights from anywhere. One that is wrong must end in one clear error, and must
neither fetch anything nor take all memory.
"""

from collections.abc import Mapping
from typing import Any

from .errors import ClipagError

# Far beyond any CLIP. Larger numbers would take all memory, or overflow a tensor's size.
LARGEST = 1_000_000
LARGEST_SIDE = 10_000  # of an image or a patch, in pixels
DEEPEST = 200  # blocks in a stack
MOST_STAGES = 16


class Settings:
    """The settings of one part of a config. Each is checked when it is read.

    Args:
        values: a part of the config, such as its `vision_cfg`.
        what: how messages name the model.
    """

    def __init__(self, values: Mapping[str, Any], what: str):
        self.values = values
        self.what = what

    def integer(
        self, key: str, default: int | None = None, smallest: int = 1, largest: int = LARGEST
    ) -> int:
        """Return a whole number.

        Raises:
            ClipagError: it is missing and has no default, is of another type, or out of range.
        """
        value = self.values.get(key, default)
        if not _is_integer_within(value, smallest, largest):
            raise self.impossible(key, f"expected a whole number from {smallest} to {largest}")
        return int(value)

    def integers(self, key: str, smallest: int = 1, largest: int = LARGEST) -> tuple[int, ...]:
        """Return a list of whole numbers, one for each stage of a tower.

        Raises:
            ClipagError: it is missing or empty, is something else, or a number is out of range.
        """
        value = self.values.get(key)
        if (
            not isinstance(value, list | tuple)
            or not 1 <= len(value) <= MOST_STAGES
            or not all(_is_integer_within(number, smallest, largest) for number in value)
        ):
            raise self.impossible(key, f"expected whole numbers from {smallest} to {largest}")
        return tuple(value)

    def ratio(self, key: str, default: float) -> float:
        """Return a number from 0 to `LARGEST`.

        Raises:
            ClipagError: it is of another type, or out of range.
        """
        value = self.values.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= LARGEST:
            raise self.impossible(key, f"expected a number from 0 to {LARGEST}")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return true or false; false if the setting is missing.

        Raises:
            ClipagError: it is of another type.
        """
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.impossible(key, "expected true or false")
        return value

    def require_multiple(self, key: str, value: int, divisor: int) -> None:
        """Raise ClipagError unless `divisor` divides the value of a setting."""
        if value % divisor:
            raise self.impossible(key, f"expected a multiple of {divisor}")

    def impossible(self, key: str, expected: str) -> ClipagError:
        """Return the error for a setting; `expected` says what the setting should be."""
        if key not in self.values:
            return ClipagError(f"{self.what} lacks the setting {key}: {expected}.")
        value = repr(self.values[key])
        return ClipagError(
            f"{self.what} has the impossible setting {key} = {value:.40}: {expected}."
        )


def _is_integer_within(value: Any, smallest: int, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest


def check_config(config: Mapping[str, Any], what: str) -> None:
    """Refuse a config that needs the network, other tokens than CLIP's, or absurdly much memory.

    Raises:
        ClipagError: it does; the message says which setting is at fault.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    if text.get("hf_model_name"):
        raise ClipagError(
            f"The text tower of {what} is {text['hf_model_name']!r} from transformers: only "
            "CLIP's own text transformer is supported."
        )
    if ":" in str(vision.get("timm_model_name")):
        raise ClipagError(
            f"The image tower of {what} is in another repository: choose a model that holds both "
            "towers."
        )
    settings = Settings(text, what)
    words = settings.integer("vocab_size", 49408)
    other_tokens = words > 49408 or ("hf_tokenizer_name" in text and words != 49408)
    if "init_logit_bias" in config or other_tokens or text.get("context_length", 77) != 77:
        raise ClipagError(
            f"{what} was not trained with CLIP's loss on CLIP's tokens, 77 a text: choose a CLIP."
        )
    for part in (config, vision, text):
        for key, value in part.items():
            largest = DEEPEST if key in ("layers", "depths") else LARGEST
            for number in value if isinstance(value, list | tuple) else [value]:
                if isinstance(number, int | float) and not 0 <= number <= largest:
                    raise Settings(part, what).impossible(key, f"expected at most {largest}")
