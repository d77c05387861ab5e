"""What several benchmarks share: prompts drawn into folders, their judgement, figures, pictures."""

import ast
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import clipag_plugins
from clipag_plugins import integrations
from clipag_plugins.ascent import Ascent
from clipag_plugins.embedded import read_config
from clipag_plugins.evaluation.drawing import draw_missing, picture_path
from clipag_plugins.files import write_beside
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.pictures import from_pil, read_picture

from .judge import LEAST, Judge
from .worn import BLUR, blurred

BATCH = 10
SHOWN = 8  # prompts in a figure: the first ones, however their pictures turned out
SIDE, MARGIN, CAPTION = 112, 6, 18  # pixels of a figure's pictures, margins and captions


@cache
def digest_of_package() -> str:
    """Return a digest of the embedded weights and of the code that draws.

    Benchmarks name their folders of pictures after it, so that no picture by older code is judged.
    It covers all modules of the package but `finetune`, without their comments and docstrings.
    """
    digest = hashlib.sha256(json.dumps(read_config(), sort_keys=True).encode())
    for package in (clipag_plugins, integrations):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            if path.relative_to(folder).parts[0] != "finetune":
                digest.update(_code_of(path).encode())
    return digest.hexdigest()[:12]


def _code_of(path: Path) -> str:
    """Return the syntax tree of a module, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() if ast.get_docstring(node):
                node.body = node.body[1:]
    return ast.dump(tree)


def pictures_of(
    draw: Callable[[list[str]], Ascent],
    prompts: Sequence[str],
    folder: Path,
    metadata: Mapping[str, object],
    batch: int = BATCH,
) -> Tensor:
    """Draw the prompts that have no picture in `folder` yet; return all pictures, (N, 3, H, W)."""
    draw_missing(draw, prompts, folder, metadata, batch)
    pictures = [read_picture(picture_path(folder, i)) for i in range(len(prompts))]
    return torch.stack([from_pil(picture, picture.size) for picture in pictures])


def judged(judge: Judge, images: Tensor, candidates: Sequence[str]) -> dict[str, float]:
    """Return R-Prec, top 5 and mean similarity of images (N, 3, H, W).

    Args:
        judge: what names the pictures.
        images: pictures of the first N candidates, in order.
        candidates: the prompts that the judge chooses from.
    """
    similarities = judge.similarity(images, candidates)
    return {**r_precision(similarities, LEAST), "similarity": similarities.diagonal().mean().item()}


def judged_twice(judge: Judge, images: Tensor, candidates: Sequence[str]) -> dict[str, float]:
    """Return what `judged` does, of images as they are and blurred, where grain cannot sway it."""
    of_blurred = judged(judge, blurred(images, BLUR), candidates)
    return {
        **judged(judge, images, candidates),
        **{f"blurred: {key}": value for key, value in of_blurred.items()},
    }


def r_precision(scores: Tensor, least: float = -math.inf) -> dict[str, float]:
    """Return how often picture i of N scores highest for prompt i, and among the first 5.

    Args:
        scores: (N, P), of N pictures and P prompts.
        least: a lower score does not count as highest.
    """
    own = scores.diagonal()
    rank = (scores > own[:, None]).sum(dim=1)
    return {
        "R-Prec": ((rank == 0) & (own >= least)).float().mean().item(),
        "top 5": (rank < 5).float().mean().item(),
    }


def write_figure(path: Path, prompts: Sequence[str], folders: Sequence[Path]) -> None:
    """Show side by side the pictures that several folders of `pictures_of` have of prompts."""
    captions = list(prompts[:SHOWN])
    pictures = [
        [Image.open(picture_path(folder, i)) for i in range(len(captions))] for folder in folders
    ]
    write_sheet(path, captions, pictures, columns=2)
    print(path)


def write_sheet(
    path: Path, captions: Sequence[str], pictures: Sequence[Sequence[Image.Image]], columns: int
) -> None:
    """Write a sheet that shows each caption above its pictures.

    Args:
        path: the file.
        captions: the texts, which fill the sheet line by line.
        pictures: lists with one picture for each caption; the lists are shown side by side.
        columns: captions on each line.
    """
    width, height = len(pictures) * SIDE + 2 * MARGIN, SIDE + CAPTION + MARGIN
    lines = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * width, lines * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, caption in enumerate(captions):
        left, top = (i % columns) * width + MARGIN, (i // columns) * height
        draw.text((left, top + 1), caption, "black", font)
        for j, of_one_kind in enumerate(pictures):
            small = of_one_kind[i].resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (left + j * SIDE, top + CAPTION))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(path, sheet)


def save_figure(path: Path, figure: Image.Image) -> None:
    """Save a figure in the format of the path's suffix. The repository's are WebP, to be small."""
    with write_beside(path) as temporary:
        figure.save(temporary, quality=90, method=6)


def first_of_each(pictures: Sequence[corpus.Picture], split: str) -> list[corpus.Picture]:
    """Return the first picture of each caption in a split, in the corpus' order."""
    first = {picture.caption: picture for picture in reversed(pictures) if picture.split == split}
    return sorted(first.values(), key=lambda picture: picture.index)


def evenly(pictures: Sequence[corpus.Picture], count: int | None) -> Sequence[corpus.Picture]:
    """Return `count` pictures at equal distances, since the corpus is sorted by source.

    With `count` None, all are returned.
    """
    return pictures if count is None else pictures[:: max(1, len(pictures) // count)][:count]
