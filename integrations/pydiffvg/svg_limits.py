"""Refuse SVG files that are damaged, or that grow far beyond their size when they are read."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar
from xml.etree.ElementTree import Element

from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.pydiffvg.svg_tree import reference, tag

DEEPEST = 200  # elements inside one another, through `use` too
# Copies by `use` that a file may make, however small it is, and for each of its own elements.
COPIES, COPIES_OF_ELEMENT = 5_000, 10
# What ElementTree and svgelements raise on text that is no SVG, or values that are no numbers.
READER_ERRORS = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")


def refuse_damaged(read: Callable[P, T]) -> Callable[P, T]:
    """Make a reader of SVG files raise ClipagError for whatever is wrong in a file."""

    @wraps(read)
    def reader(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except READER_ERRORS as error:
            filename = args[0] if args else kwargs.get("filename")
            raise ClipagError(
                f"{filename} is not SVG that can be read ({type(error).__name__}): save it again "
                "with another program."
            ) from error

    return reader


def check_growth(root: Element, filename: object) -> None:
    """Refuse a tree that is too deep, or that `use` copies too often or into itself.

    Raises:
        ClipagError: it is.
    """
    nodes = {node.get("id"): node for node in root.iter()}
    sizes: dict[Element, tuple[int, int]] = {}

    def size(node: Element, parents: int) -> tuple[int, int]:
        """Return the number of elements of a node with all copies, and its height."""
        if node not in sizes:
            children = list(node)
            if tag(node) == "use":
                name = reference(node)
                children += [nodes[name]] if name in nodes else []
            height = count = 0
            for child in children if parents < DEEPEST else ():
                elements, levels = size(child, parents + 1)
                count, height = count + elements, max(height, levels)
            if parents + height >= DEEPEST:
                raise ClipagError(
                    f"{filename} has more than {DEEPEST} elements inside one another, or a <use> "
                    "that contains itself: simplify it."
                )
            sizes[node] = 1 + count, 1 + height
        return sizes[node]

    count, _ = size(root, 0)
    own = sum(1 for _ in root.iter())
    if count > COPIES + COPIES_OF_ELEMENT * own:
        raise ClipagError(
            f"{filename} has {own} elements, which <use> copies to {count:.3g}: simplify it."
        )
