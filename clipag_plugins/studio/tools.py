"""The studio's tabs: for each a command, its settings, and how to restore them from a PNG."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..commands.canvas_options import join_sizes
from ..defaults import (
    BLUR,
    CANVASES,
    DRAWING_MODEL,
    HEAT_MAP_METHOD,
    HEAT_MAP_METHODS,
    INVERSION_CLOSENESS,
    MODEL,
    NORMS,
    PUBLIC_VQGANS,
    SHAPES,
    SIDE,
    STROKE_STEPS,
    STROKE_WIDTH,
    STROKES,
    STYLE_CONTENT_WEIGHT,
    STYLE_PATCHES,
    STYLE_STEPS,
    STYLE_STRENGTH,
    STYLE_THRESHOLD,
    STYLE_TV,
    STYLE_WHOLE,
    VQGAN,
    VQGAN_STEPS,
)
from ..errors import ClipagError
from .controls import Control, Value, after, hidden, part, same

LARGEST_SIDE, MOST_STEPS, MOST_VIEWS = 512, 1000, 256  # of a shared machine's picture
LARGEST_SEED = 2**53 - 1  # a browser's numbers are exact up to here

SEED = Control("Seed", "--seed", "whole", 0, (0, LARGEST_SEED), key="seed",
               help="same seed, same picture")  # fmt: skip
SIDES = (
    Control("Width", "--size", "whole", SIDE, (16, LARGEST_SIDE), key="size", read=part(0)),
    Control("Height", "--size", "whole", SIDE, (16, LARGEST_SIDE), key="size", read=part(1)),
)
START = Control("Start from a picture", "--init", "picture")
PHOTO = Control("Photo", "", "picture")
SAMPLING = (
    Control("Views", "--views", "whole", None, (1, MOST_VIEWS), key="views",
            help="of a step; 1 is the picture itself; 0: what suits the model"),
    Control("Tries", "--tries", "whole", None, (1, 16), key="tries",
            help="starts, of which the best is kept; 0: what suits the model"),
    Control("Canvas", "--canvas", "choice", CANVASES[0], choices=same(*CANVASES),
            key="canvas", help="what is changed; auto is what suits the model"),
    Control("Start", "--init", "choice", "gmm", key="init",
            choices=(("mixture of Gaussians", "gmm"), ("noise", "noise"))),
)  # fmt: skip
THREAT_MODEL = hidden(
    Control("Norm", "--norm", "choice", NORMS[0], choices=same(*NORMS), key="attack",
            read=lambda text: text.partition(",")[0]),
    Control("Largest change (eps)", "--eps", "number", 8 / 255, (0.0001, 1000), key="attack",
            read=after("eps"), help="for pixels from 0 to 1"),
    Control("Steps of the attack", "--steps", "whole", 20, (1, MOST_STEPS), key="attack",
            read=lambda text: text.rpartition(",")[2].split()[0]),
)  # fmt: skip


def prompt(label: str, help: str = "") -> Control:
    """Return the control of a command's text."""
    return Control(label, "", "text", "", help=help, key="prompt")


def steps(default: int | None, help: str = "") -> Control:
    """Return the control of --steps."""
    return Control("Steps", "--steps", "whole", default, (1, MOST_STEPS), help=help, key="steps")


@dataclass(frozen=True)
class Tool:
    """One tab.

    Attributes:
        name: its title.
        command: the command that it runs.
        verb: what its button says.
        controls: its settings, in the order of the command's arguments.
        mark: a key that only this command's metadata have.
        endings: of the files that the command writes; the last is the PNG.
        model: the model that the command takes unless another is chosen.
        model_option: the option of the model.
    """

    name: str
    command: str
    verb: str
    controls: tuple[Control, ...]
    mark: str
    endings: tuple[str, ...] = (".png",)
    model: str = MODEL
    model_option: str = "--model"

    def words(self, values: Mapping[str, Value]) -> tuple[list[list[str]], list[str]]:
        """Return the options and the arguments of the command, given the values by label.

        Each option is a list of words: itself and its values.
        """
        options: dict[str, list[str]] = {}
        arguments = []
        for control in self.controls:
            value = values.get(control.label, control.default)
            if control.option == "":
                arguments.append("" if value is None else str(value))
            elif control.kind == "switch":
                on, off = control.option, control.option.replace("--", "--no-", 1)
                options[on if value else off] = []
            elif control.kind == "picture" and value:
                options[control.option] = [str(value)]  # instead of the choice of a start
            elif value not in (None, "") and (value or control.default is not None):
                options.setdefault(control.option, []).append(str(value))
        if len(set(options.get("--size", ()))) == 1:
            options["--size"] = options["--size"][:1]  # a square
        # What follows "=" is never taken for an option.
        return [
            [f"{name}={texts[0]}"] if len(texts) == 1 else [name, *texts]
            for name, texts in options.items()
        ], arguments


TOOLS = (
    Tool(
        "Sampler",
        "generate",
        "Draw",
        (
            prompt("Prompt", "what to draw, from pixels alone"),
            SEED,
            steps(None, "0: what suits the model"),
            *SIDES,
            *hidden(
                *SAMPLING,
                START,
            ),
        ),
        mark="tries",
        model=DRAWING_MODEL,
    ),
    Tool(
        "Drawing",
        "draw",
        "Draw",
        (
            prompt("Prompt", "what to draw with strokes, as an SVG"),
            SEED,
            steps(STROKE_STEPS),
            *SIDES,
            Control("Strokes", "--strokes", "whole", STROKES, (1, 1024), key="strokes"),
            *hidden(
                Control("Shapes", "--shapes", "choice", SHAPES[0], choices=same(*SHAPES),
                        key="shapes"),
                Control("Thinnest stroke", "--width", "number", STROKE_WIDTH[0], (0.1, 224),
                        key="width", read=part(0), help="in 224ths of the side"),
                Control("Thickest stroke", "--width", "number", STROKE_WIDTH[1], (0.1, 224),
                        key="width", read=part(1)),
                Control("Palette", "--palette", "text", "", key="palette", blank="any",
                        help="the only colours to use: black,e63946,f1faee"),
                Control("Not like", "--negative", "text", "", key="negative",
                        blank="none"),
                Control("Paper", "--background", "text", "white", key="background",
                        help="a colour, or none for transparent"),
                Control("Augment", "--augment", "switch", True, key="views",
                        help="guide by 4 random views instead of the drawing itself"),
                START,
            ),
        ),
        mark="strokes",
        endings=(".svg", ".png"),
        model=DRAWING_MODEL,
    ),
    Tool(
        "VQGAN",
        "vqgan",
        "Draw",
        (
            prompt("Prompt", "text:weight | text:weight at once, scene ^ scene one after another"),
            SEED,
            steps(VQGAN_STEPS),
            *SIDES,
            *hidden(
                Control("VQGAN", "--vqgan", "choice", VQGAN, choices=same(VQGAN, *PUBLIC_VQGANS),
                        key="vqgan"),
                Control("Views", "--views", "whole", None, (1, MOST_VIEWS), key="views",
                        read=after("count"), help="0: what suits the VQGAN"),
                Control("Learning rate", "--rate", "number", None, (0.0001, 10), key="rate",
                        help="0: what suits the VQGAN"),
                Control("Start", "--init", "choice", "gmm",
                        choices=same("gmm", "noise", "pixels", "gradient"), key="init"),
                START,
            ),
        ),
        mark="vqgan",
        model=DRAWING_MODEL,
    ),
    Tool(
        "Style",
        "style",
        "Restyle",
        (
            PHOTO,
            prompt("Style", "a watercolor painting with purple brush"),
            SEED,
            steps(STYLE_STEPS),
            Control("Longer side", "--size", "whole", 256, (16, LARGEST_SIDE), key="size"),
            Control("Style network", "--network", "switch", False, key="network",
                    help="train CLIPStyler's network on the photo, with about 100 steps"),
            *hidden(
                Control("Strength", "--strength", "number", STYLE_STRENGTH, (0.01, 100),
                        key="strength"),
                Control("Patches", "--patches", "whole", STYLE_PATCHES, (0, MOST_VIEWS),
                        key="patches", help="random crops of a step"),
                Control("Threshold", "--threshold", "number", STYLE_THRESHOLD, (0, 2),
                        key="threshold", help="crops nearer to the style stop pulling"),
                Control("Weight of the whole picture", "--whole", "number", STYLE_WHOLE,
                        (0, 100), key="whole"),
                Control("Weight of the content", "--content-weight", "number",
                        STYLE_CONTENT_WEIGHT, (0, 100), key="content_weight"),
                Control("Total variation", "--tv", "number", STYLE_TV, (0, 100), key="tv"),
            ),
        ),
        mark="content_weight",
        model=DRAWING_MODEL,
    ),
    Tool(
        "Invert",
        "invert",
        "Draw anew",
        (
            PHOTO,
            replace(SEED, help="another seed is a variation"),
            steps(None, "0: what suits the model"),
            Control("Side", "--size", "whole", SIDE, (16, LARGEST_SIDE), key="size"),
            Control("Closeness", "--closeness", "number", INVERSION_CLOSENESS, (0, 1),
                    key="closeness", help="share of the blurred photo in the start"),
            *hidden(
                Control("Blur", "--blur", "number", BLUR, (0, 1), key="blur",
                        help="of the photo, as a share of the side"),
                *SAMPLING,
            ),
        ),
        mark="inverted",
        model=DRAWING_MODEL,
    ),
    Tool(
        "Explain",
        "explain",
        "Explain",
        (
            PHOTO,
            prompt("Text", "what to look for in the photo"),
            Control("Method", "--method", "choice", HEAT_MAP_METHOD,
                    choices=same(*HEAT_MAP_METHODS), key="method"),
            SEED,
            *THREAT_MODEL,
        ),
        mark="method",
        model_option="--models",
    ),
    Tool(
        "Attack",
        "attack",
        "Attack",
        (
            PHOTO,
            prompt("What it shows"),
            Control("Towards", "--towards", "text", "", key="towards",
                    read=lambda text: "" if text.startswith("not ") else text,
                    help="what the model should see instead; empty: not what it shows"),
            SEED,
            *THREAT_MODEL,
        ),
        mark="towards",
    ),
)  # fmt: skip


def read_settings(metadata: Mapping[str, str]) -> tuple[Tool, dict[str, Value]]:
    """Return the tool that made a PNG, and its settings by label, as the PNG's metadata say.

    A setting that the metadata lack, or have out of range, gets its default or the nearest value in
    range.

    Raises:
        ClipagError: no tool of the studio wrote these metadata.
    """
    # The first has the mark that others may have, too.
    for tool in reversed(TOOLS):
        if tool.mark in metadata:
            return tool, {control.label: control.value_of(metadata) for control in tool.controls}
    raise ClipagError(
        "This picture does not say how it was made: drop a PNG that a clipag command or this page "
        "wrote."
    )


def title_of(metadata: Mapping[str, str]) -> str:
    """Return what a PNG shows: its text, or the name of the photo that was drawn anew."""
    return metadata.get("prompt", metadata.get("inverted", ""))


def models_of(metadata: Mapping[str, str]) -> list[str]:
    """Return the names of the models that made a PNG."""
    names = metadata.get("model", metadata.get("models", ""))
    return [name for name in names.replace(" + ", ", ").split(", ") if name]


def shown_command(
    tool: Tool, model: str, values: Mapping[str, Value], parser: argparse.ArgumentParser
) -> str:
    """Return the command that a user would type: without defaults, files by their names alone."""
    pictures = {control.label for control in tool.controls if control.kind == "picture"}
    named = {
        label: Path(str(value)).name if label in pictures and value else value
        for label, value in values.items()
    }
    options, arguments = tool.words(named)
    options.append([f"{tool.model_option}={model}"])

    def parsed(option: Sequence[str]) -> argparse.Namespace:
        return parser.parse_args(_joined(tool, [*option, "--", *arguments]))

    typed = [word for option in options if parsed(option) != parsed([]) for word in option]
    is_plain = not any(argument.startswith("-") for argument in arguments)
    behind = [*arguments, *typed] if is_plain else [*typed, "--", *arguments]
    return shlex.join(["clipag", tool.command, *behind])


def _joined(tool: Tool, words: Sequence[str]) -> list[str]:
    return join_sizes([tool.command, *words])[1:]
