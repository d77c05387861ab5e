"""The settings of the studio's tabs: what a page shows, the option, and the place in metadata."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

Value = str | float | bool | None

ON = ("yes", "kept", "augmented", "True")  # words of the metadata for a switch that is on


@dataclass(frozen=True)
class Control:
    """One setting of a tab.

    Attributes:
        label: its name on the page, and in the mapping of values.
        option: the option it becomes, as "--steps"; "" for an argument without one. Controls of one
            option give it several values, as the width and height of "--size".
        kind: "text", "whole" (a whole number), "number", "choice", "switch" or "picture" (a file).
        default: the value at the start. None, which the page shows as 0, lets the command choose.
        limits: least and most, of a number.
        choices: of a choice; each is a value, or a label and a value.
        help: a sentence below the label.
        key: the key of a PNG's metadata that holds it; "" if none does.
        read: takes the control's part out of the metadata's text.
        blank: what the metadata say of an empty field.
        more: whether it is shown only among "More settings".
    """

    label: str
    option: str
    kind: str
    default: Value = None
    limits: tuple[float, float] = (0, 0)
    choices: tuple[tuple[str, str], ...] = ()
    help: str = ""
    key: str = ""
    read: Callable[[str], str] = field(default=str, repr=False)
    blank: str = ""
    more: bool = False

    def value_of(self, metadata: Mapping[str, str]) -> Value:
        """Return the value that a PNG's metadata has, or the default if it has none that fits."""
        if not self.key or self.key not in metadata:
            return self.default
        try:
            text = self.read(metadata[self.key])
            if self.kind in ("whole", "number"):
                return self._number(float(text))
        except (ValueError, IndexError, OverflowError):
            return self.default
        if self.kind == "switch":
            return text in ON
        if self.kind == "choice":
            return text if text in [value for _, value in self.choices] else self.default
        return "" if text == self.blank else text

    def _number(self, number: float) -> float:
        least, most = self.limits
        if not math.isfinite(number):
            raise ValueError(number)
        number = min(max(number, least), most)
        return round(number) if self.kind == "whole" else number


def part(number: int) -> Callable[[str], str]:
    """Return a reader of the numbers in a text; one number stands for all of them."""

    def read(text: str) -> str:
        numbers: list[str] = re.findall(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", text)
        return numbers[number] if len(numbers) > 1 else numbers[0]

    return read


def after(name: str) -> Callable[[str], str]:
    """Return a reader of the number that follows a name, as 8 in "count=8"."""

    def read(text: str) -> str:
        match = re.search(rf"{name}[= ](\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)", text)
        if match is None:
            raise ValueError(text)
        return match[1]

    return read


def same(*values: str) -> tuple[tuple[str, str], ...]:
    """Return choices whose labels are their values."""
    return tuple((value, value) for value in values)


def hidden(*controls: Control) -> tuple[Control, ...]:
    """Return controls that are shown only among "More settings"."""
    return tuple(replace(control, more=True) for control in controls)
