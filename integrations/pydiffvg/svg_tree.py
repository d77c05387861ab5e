"""Mark what SVG does not draw, in the form that svgelements understands.

svgelements draws the contents of elements that only exist to be referred to, and all branches of a
<switch>, and ignores the viewBox of a <symbol>.
"""

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from xml.etree.ElementTree import Element

# Their contents are drawn, if at all, where something refers to them. svgelements knows <defs>,
# <clipPath> and <pattern>.
_ONLY_REFERRED_TO = {
    "filter", "font", "foreignObject", "linearGradient", "marker", "mask", "meshgradient",
    "metadata", "radialGradient", "symbol",
}  # fmt: skip
_HREFS = ("href", "{http://www.w3.org/1999/xlink}href")


def tag(node: Element) -> str:
    """Return the name of an element without its namespace."""
    # A comment has a function in place of a name.
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def reference(node: Element) -> str:
    """Return the id that an element refers to; empty if there is none."""
    return next((node.attrib[href][1:] for href in _HREFS if href in node.attrib), "")


def leave_out_undrawn(svg: ModuleType, root: Element) -> None:
    """Change a tree so that svgelements draws what SVG draws.

    Args:
        svg: svgelements.
        root: the <svg>, whose width and height are numbers.
    """
    for parent in list(root.iter()):
        if tag(parent) == "switch":
            parent[:] = _chosen_branch(parent)
        for number, child in enumerate(parent):
            if tag(child) in _ONLY_REFERRED_TO:
                namespace = child.tag.removesuffix(tag(child))
                parent[number] = Element(f"{namespace}defs")
                parent[number].append(child)
    symbols = {node.get("id"): node for node in root.iter() if tag(node) == "symbol"}
    for symbol in symbols.values():
        # A <use> draws even a symbol that is said not to be displayed.
        symbol.attrib.pop("display", None)
        symbol.set("style", re.sub(r"\bdisplay\s*:\s*none\b", "", symbol.get("style", "")))
    for node in root.iter():
        if tag(node) == "use" and reference(node) in symbols:
            _apply_view_box(svg, node, symbols[reference(node)], root)


def is_visible(element: Any) -> bool:
    """Return whether an element of svgelements is visible, by itself or by what it inherits."""
    return element.values.get("visibility") not in ("hidden", "collapse")


def _chosen_branch(switch: Element) -> Sequence[Element]:
    """Return the first child of a <switch> that needs nothing that we lack, as a list."""
    for child in switch:
        language = child.get("systemLanguage", "en")
        if "requiredExtensions" not in child.attrib and re.search(r"\ben\b", language):
            return [child]
    return []


def _apply_view_box(svg: ModuleType, use: Element, symbol: Element, root: Element) -> None:
    """Put the map that a symbol's viewBox asks for into the transform of its <use>."""
    view_box = svg.Viewbox(symbol.get("viewBox"), symbol.get("preserveAspectRatio"))
    if not view_box.width or not view_box.height:
        return
    sides = []
    for side in ("width", "height"):
        text = use.get(side, "100%")
        whole = svg.Length(root.get(side)).value(ppi=96)
        sides.append(float(svg.Length(text).value(ppi=96, relative_length=whole)))
    corner = [float(svg.Length(use.attrib.pop(name, "0")).value(ppi=96)) for name in ("x", "y")]
    mapping = svg.Viewbox.viewbox_transform(
        *corner, *sides, view_box.x, view_box.y, view_box.width, view_box.height,
        view_box.preserve_aspect_ratio,
    )  # fmt: skip
    use.set("transform", f"{use.get('transform', '')} {mapping}".strip())
