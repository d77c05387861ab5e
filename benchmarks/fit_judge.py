"""Fit the judge's prototypes on the corpus, and find out whether the judge may judge.

    python -m benchmarks.fit_judge --work build/weights             # fit, write, validate
    python -m benchmarks.fit_judge --work build/weights --measure   # validate the one in use

Linear discriminant analysis (Fisher, 1936) on the frozen trunk's features: directions in which the
pictures of one caption scatter count for less, and a caption's prototype is the mean of its
pictures. Nothing is trained. The captions in `unseen.txt`, which the judge must be able to judge,
have prototypes of their pictures too. Never used: the corpus' test split, and an eighth of all
other pictures.

A judge counts if it names at least 90 % of held-out pictures among 100 captions and at most 4 % of
the sampler's starts, and agrees with a viewer who named 100 drawings of `clipag-mini` without their
prompts. `naming.webp` has the drawings. `results/naming.json` says who the viewer was and what it
saw.
"""

import argparse
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from clipag_plugins.files import write_beside
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.embedded.image_tower import Pictures
from clipag_plugins.hub import load_model
from clipag_plugins.pictures import from_pil

from . import RESULTS, keep, keep_table
from .groups import prompts_of
from .judge import BATCH, LEAST, SIDE, Head, Judge, Trunk, sentence_embeddings
from .quality import starts
from .worn import BLUR, blurred, worn

DIMENSIONS = 360  # of the space, in which captions differ most
TINY = 0.01  # keeps features that hardly vary from counting much
SHRINKAGE = 0.05  # of the scatter towards equal variances, as a share of the mean variance
PICTURES = 2  # that a caption has at least, if it has a prototype
SHEET = Path(__file__).parent / "naming.webp"
HELD_OUT = 8  # one picture in so many


def is_held_out(picture: corpus.Picture) -> bool:
    """Return whether the head does not learn from a picture."""
    digest = zlib.crc32(f"{picture.source}/{picture.name}".encode())
    return picture.split == "test" or digest % HELD_OUT == 0


def features_of(pictures: Pictures, chosen: Tensor, trunk: Trunk, cache: Path) -> Tensor:
    """Return the features (N, 2048) of pictures; keep them in a file."""
    if not cache.exists():
        chunks = tqdm(chosen.split(BATCH), desc="features", unit="batch")
        with torch.no_grad():
            features = torch.cat([trunk(pictures.plain(chunk)).half() for chunk in chunks])
        with write_beside(cache) as temporary:
            save_file({"features": features}, temporary)
    kept: Tensor = load_file(cache)["features"].float()
    return kept


def fit(features: Tensor, captions: Sequence[str], known: Sequence[str]) -> Head:
    """Fit the head.

    Args:
        features: (N, 2048), of N pictures.
        captions: the pictures' N captions.
        known: the captions of all pictures that the guides may see, sorted.
    """
    names = sorted(set(captions))
    number = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([number[caption] for caption in captions])
    counts = labels.bincount()
    sums = features.new_zeros(len(names), features.shape[1]).index_add_(0, labels, features)
    means = sums / counts[:, None]
    mean = features.mean(dim=0)

    # In units of each feature's deviation, since stages differ in range.
    scale = features.std(dim=0) + TINY
    residuals = (features - means[labels]) / scale
    scatter = residuals.T @ residuals / len(features)
    scatter += SHRINKAGE * scatter.diagonal().mean() * torch.eye(len(scatter))
    variances, axes = torch.linalg.eigh(scatter)
    whitening = axes / variances.sqrt() / scale[:, None]
    often = (counts >= PICTURES).nonzero()[:, 0]
    placed = F.normalize((means[often] - mean) @ whitening, dim=1)
    directions = torch.linalg.svd(placed - placed.mean(dim=0), full_matrices=False).Vh
    projection = whitening @ directions[:DIMENSIONS].T
    return Head(
        mean,
        projection / projection.abs().max(),  # lengths do not matter, and float16 is the file's
        F.normalize((means[often] - mean) @ projection, dim=1),
        tuple(names[i] for i in often.tolist()),
        tuple(known),
    )


def fitted(work: Path, pictures: Pictures, rows: Sequence[corpus.Picture]) -> Head:
    """Fit the head on the corpus' pictures that are not held out."""
    learnable = torch.tensor([row.index for row in rows if not is_held_out(row)])
    features = features_of(pictures, learnable, Trunk(), work / "judge-features.safetensors")
    captions = [rows[index].caption for index in learnable.tolist()]
    known = {row.caption for row in rows if row.split != "unseen"}
    return fit(features, captions, sorted(known))


def named(judge: Judge, images: Tensor, prompts: Sequence[str], right: Tensor) -> Tensor:
    """Return whether the judge finds that each image shows its right prompt, (N,)."""
    highest, best = judge.similarity(images, prompts).max(dim=1)
    return (best == right) & (highest >= LEAST)


def real_pictures(
    judge: Judge, pictures: Pictures, rows: Sequence[corpus.Picture]
) -> dict[str, Any]:
    """Return how often the judge names held-out pictures: as they are, blurred and worn."""
    report: dict[str, Any] = {}
    for name in ("seen", "unseen"):
        prompts = corpus.read_concepts(corpus.SPLIT_FOLDER / f"{name}.txt")
        chosen = [row for row in rows if is_held_out(row) and row.caption in prompts]
        right = torch.tensor([prompts.index(row.caption) for row in chosen])
        plain = pictures.plain(torch.tensor([row.index for row in chosen]))
        is_test = torch.tensor([row.split == "test" for row in chosen])
        entry: dict[str, Any] = {"pictures": len(chosen)}
        for kind, images in (
            ("plain", plain),
            ("blurred", blurred(plain, BLUR)),
            ("worn", worn(plain, torch.Generator().manual_seed(0))),
        ):
            hits = named(judge, images, prompts, right).float()
            entry[kind] = hits.mean().item()
            if is_test.any():
                entry["of the test split"] = int(is_test.sum())
                entry[f"{kind}, test split"] = hits[is_test].mean().item()
        texts = judge.prototypes(sentence_embeddings(prompts), without=prompts)
        guesses = (judge.embed_images(plain) @ texts.T).topk(5).indices == right[:, None]
        entry["without their prototypes"] = guesses[:, 0].float().mean().item()
        entry["without their prototypes, top 5"] = guesses.any(dim=1).float().mean().item()
        report[name] = entry
    return report


def classified(judge: Judge, pictures: Pictures, rows: Sequence[corpus.Picture]) -> dict[str, Any]:
    """Return how often ImageNet's classifier names the corpus' pictures, none of which it knows."""
    names = prompts_of("imagenet")
    chosen = [row for row in rows if row.caption in names]
    right = torch.tensor([names.index(row.caption) for row in chosen])
    plain = pictures.plain(torch.tensor([row.index for row in chosen]))
    hits = judge.classes(plain, names).argmax(dim=1) == right
    return {"pictures": len(chosen), "plain": hits.float().mean().item()}


def drawings_of_the_sheet() -> Tensor:
    """Return the drawings that the viewer saw in their prompts' order, (100, 3, 160, 160)."""
    with Image.open(SHEET) as file:
        sheet = from_pil(file, file.size)
    return sheet.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4).flatten(0, 1)


def agreement(judge: Judge, prompts: Sequence[str]) -> dict[str, float]:
    """Compare the judge with the viewer of `results/naming.json`, and write its names there."""
    table = json.loads((RESULTS / "naming.json").read_text(encoding="utf-8"))
    guesses = judge.names(drawings_of_the_sheet(), prompts)
    named_by = []
    for row in table["rows"]:
        row["judge"] = guesses[prompts.index(row["prompt"])]
        named_by.append((row["match"], row["judge"] == row["prompt"]))
    settings = {key: value for key, value in table.items() if key not in ("made", "rows")}
    keep_table("naming", settings, table["rows"])
    by_viewer, by_judge = torch.tensor(named_by).T
    same = (by_viewer == by_judge).float().mean().item()
    viewer, judged = by_viewer.float().mean().item(), by_judge.float().mean().item()
    by_chance = viewer * judged + (1 - viewer) * (1 - judged)
    return {
        "the viewer names": viewer,
        "the judge names": judged,
        "agreement": same,
        "Cohen's kappa": (same - by_chance) / (1 - by_chance),
    }


def validate(judge: Judge, pictures: Pictures, rows: Sequence[corpus.Picture]) -> dict[str, Any]:
    """Return what makes a judge: real pictures, starts, and a viewer's names."""
    prompts = prompts_of("seen")
    blurs = starts(load_model("clipag-mini"), 0, prompts).images
    return {
        "held-out pictures among 100 captions": real_pictures(judge, pictures, rows),
        "ImageNet's classifier among 100 names": classified(judge, pictures, rows),
        "starts": named(judge, blurs, prompts, torch.arange(len(prompts))).float().mean().item(),
        "drawings, the viewer and the judge": agreement(judge, prompts),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--measure", action="store_true", help="only validate the present one")
    options = parser.parse_args()
    pixels, rows = corpus.load(options.work)
    pictures = Pictures(torch.tensor(pixels), corpus.SIZE)
    if not options.measure:
        fitted(options.work, pictures, rows).write()
    keep("judge", validate(Judge.load(), pictures, rows))
