"""Draw the gallery's figures about image embeddings, all by `clipag-mini` in one try.

    python -m benchmarks.unclip_figures              # all of them
    python -m benchmarks.unclip_figures pca diffs

The pictures are some of `tests/held_out.png`, which no model was trained on (Fluent Emoji by
Microsoft, MIT; Noto Emoji by Google, Apache-2.0). They were chosen before anything was drawn.
"""

import argparse
from collections.abc import Callable

import torch
from PIL import Image

from clipag_plugins.arguments import RunOptions
from clipag_plugins.ascent import Ascent
from clipag_plugins.base import embed_images
from clipag_plugins.files import write_beside
from clipag_plugins.hub import load_model
from clipag_plugins.inversion import Inversion, edit, interpolate, invert
from clipag_plugins.latents import PrincipalComponents
from clipag_plugins.pictures import from_pil, to_pil
from clipag_plugins.probing import attack_by_word, draw_components
from clipag_plugins.sampler import sample, settings_for
from clipag_plugins.sheet import sheet

from . import FIGURES, ROOT
from .groups import prompts_of

MODEL, VANILLA = "clipag-mini", "clip-mini"
CELL, SIDE = 48, 112  # pixels of a held-out picture and of a drawn one
HOW = Inversion(size=SIDE, tries=1)
BLURRED = Inversion(size=SIDE, closeness=1.0)
QUIET = RunOptions(progress=False)
QUALITY = 80  # of WebP
PROMPTS = 4  # of a group
COMPONENTS = (1, 4, 16, 64)


def held_out() -> dict[str, Image.Image]:
    """Return the held-out pictures by their captions."""
    with Image.open(ROOT / "tests" / "held_out.png") as file:
        captions, whole = file.info["captions"].split("; "), file.convert("RGB")
    columns = whole.width // CELL
    corners = [(i % columns * CELL, i // columns * CELL) for i in range(len(captions))]
    return {
        caption: whole.crop((left, top, left + CELL, top + CELL))
        for caption, (left, top) in zip(captions, corners, strict=True)
    }


def shown(ascent: Ascent) -> list[Image.Image]:
    """Return an ascent's pictures."""
    return [to_pil(image) for image in ascent.images]


def enlarged(picture: Image.Image) -> Image.Image:
    """Return a held-out picture as large as the drawn ones."""
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def variations() -> Image.Image:
    """Pictures of one embedding from several starts."""
    pictures, names = held_out(), ["cat face", "hamburger", "beaver"]
    sources = [pictures[name] for name in names]
    lines = [[enlarged(source)] for source in sources]
    for how in (
        Inversion(size=SIDE, tries=1, seed=(0, 1, 2)),
        Inversion(size=SIDE, tries=1, seed=(0, 1), closeness=0.5),
    ):
        drawn = shown(invert(sources, MODEL, how, options=QUIET))
        count = len(drawn) // len(sources)
        for number, line in enumerate(lines):
            line += drawn[number * count : (number + 1) * count]
    return sheet(
        lines, ["picture", "0, seed 0", "seed 1", "seed 2", "0.5, seed 0", "seed 1"], names
    )


def interpolation() -> Image.Image:
    """What lies between two pictures."""
    pictures = held_out()
    pairs = [("cat face", "bell pepper"), ("beaver", "hamburger")]
    lines = [
        shown(interpolate([pictures[each] for each in pair], MODEL, BLURRED, between=4,
                          options=QUIET))
        for pair in pairs
    ]  # fmt: skip
    return sheet(lines, ["0", "0.2", "0.4", "0.6", "0.8", "1"], [" to ".join(p) for p in pairs])


def diffs() -> Image.Image:
    """Pictures changed from one text towards another."""
    pictures = held_out()
    edits = {
        "blue heart": ("a blue heart", "a red heart"),
        "cat face": ("a cat", "a lion"),
        "hamburger": ("a hamburger", "a birthday cake"),
    }
    strengths = (0.0, 0.2, 0.4, 0.6, 0.8)
    lines = [
        [
            enlarged(pictures[name]),
            *shown(edit(pictures[name], texts, MODEL, BLURRED, strengths=strengths, options=QUIET)),
        ]
        for name, texts in edits.items()
    ]
    titles = ["picture", *(f"{strength:g}" for strength in strengths)]
    return sheet(lines, titles, [" to ".join(texts) for texts in edits.values()])


def pca() -> Image.Image:
    """Pictures of growing numbers of principal components."""
    pictures, model = held_out(), load_model(MODEL)
    corpus = torch.stack([from_pil(picture, (CELL, CELL)) for picture in pictures.values()])
    with torch.no_grad():
        components = PrincipalComponents.fit(embed_images(model, corpus))
    names = ["cat face", "bell pepper", "volcano"]
    lines = [
        [
            enlarged(pictures[name]),
            *shown(draw_components(pictures[name], components, COMPONENTS, model, HOW, QUIET)),
        ]
        for name in names
    ]
    return sheet(lines, ["picture", *map(str, COMPONENTS)], names)


def typographic() -> Image.Image:
    """What a pasted word does to both models."""
    picture, lines, names = held_out()["cat face"], [], []
    for name in (VANILLA, MODEL):
        attack = attack_by_word(
            picture, "pizza", ["a cat", "a castle"], load_model(name), HOW, QUIET
        )
        drawn = shown(attack.ascent)
        lines.append([attack.pictures[0], drawn[0], attack.pictures[1], drawn[1]])
        before, after = attack.probabilities[:, 0].tolist()
        names.append(f"{name}: {attack.texts[0]} {before:.0%}, with the word {after:.0%}")
    return sheet(lines, ["picture", "inverted", "with the word", "inverted"], names)


def prior() -> Image.Image:
    """Prompts drawn without and with the prior."""
    model = load_model(MODEL)
    prompts = [*prompts_of("seen")[:PROMPTS], *prompts_of("neither")[:PROMPTS]]
    settings = settings_for(model, tries=1)
    lines = [
        shown(sample(prompts, model, settings, size=SIDE,
                     options=RunOptions(progress=False, prior=kind)))
        for kind in (None, "diffusion")
    ]  # fmt: skip
    return sheet(lines, prompts, ["towards the text and the memory", "towards the prior's sample"])


DRAW: dict[str, Callable[[], Image.Image]] = {
    "variations": variations,
    "interpolation": interpolation,
    "diffs": diffs,
    "pca": pca,
    "typographic": typographic,
    "prior": prior,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(DRAW)}")
    for figure in parser.parse_args().figures or DRAW:
        path = FIGURES / f"unclip_{figure}.webp"
        with write_beside(path) as temporary:
            DRAW[figure]().save(temporary, quality=QUALITY)
        print(path, path.stat().st_size, flush=True)
