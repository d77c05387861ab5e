"""Measure sets of pictures: each function adds one kind of measurement to a report.

A set of pictures is a column of the report. Each function raises ClipagError where it cannot
measure; `measure` turns that into a note and goes on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ClipagError
from .folders import Picture, batches, find_pictures, read_folder
from .judges import AESTHETIC_HEAD, AestheticHead, ClipJudge, embed, guided_by, load_judge
from .metrics import fid, inception, inception_score, judged, lpips, preference
from .options import ComputeOptions
from .report import Measurement, Report, mean

INCEPTION_SIDE, LPIPS_SIDE = 299, 224


@dataclass(frozen=True)
class PictureSets:
    """Sets of pictures of the same prompts.

    Attributes:
        prompts: all prompts.
        pictures: the pictures of each set, under the name of its column.
        rivals: pairs of sets that are compared picture by picture.
        cache: folder for embeddings, which are not computed again.
        compute: device and batch size.
    """

    prompts: Sequence[str]
    pictures: Mapping[str, Sequence[Picture]]
    rivals: Sequence[tuple[str, str]]
    cache: Path
    compute: ComputeOptions

    def paths(self, label: str) -> list[Path]:
        """Return the files of a set."""
        return [picture.path for picture in self.pictures[label]]

    def images(self, label: str, side: int) -> Iterator[Tensor]:
        """Return a set as batches of images (B, 3, side, side) in [0, 1]."""
        return batches(self.paths(label), side, self.compute.batch)

    def embeddings(self, judge: ClipJudge, label: str) -> Tensor:
        """Return a judge's embeddings (N, D) of a set."""
        return embed(judge, self.paths(label), self.cache, self.compute.batch)

    def pairs(self, label: str, rival: str) -> tuple[list[int], list[int]]:
        """Return the indices of the pictures of two sets that show the same prompts, in order.

        Raises:
            ClipagError: the sets have no prompt in common.
        """
        unpaired: dict[int, list[int]] = {}
        for i, picture in enumerate(self.pictures[rival]):
            unpaired.setdefault(picture.prompt, []).append(i)
        pairs = [
            (i, unpaired[picture.prompt].pop(0))
            for i, picture in enumerate(self.pictures[label])
            if unpaired.get(picture.prompt)
        ]
        if not pairs:
            raise ClipagError("the rivals have no prompt in common.")
        return [i for i, _ in pairs], [j for _, j in pairs]


Measure = Callable[[PictureSets, Report], None]


def measure(
    prompts: Sequence[str],
    folders: Mapping[str, Path],
    rivals: Sequence[tuple[str, str]],
    measures: Mapping[str, Measure],
    cache: Path,
    compute: ComputeOptions,
) -> Report:
    """Measure folders of pictures; what cannot be measured becomes a note.

    Args:
        prompts: all prompts.
        folders: the folder of each set, under the name of its column.
        rivals: pairs of sets that are compared picture by picture.
        measures: what to measure, under the names that notes use.
        cache: folder for embeddings.
        compute: device and batch size.

    Raises:
        ClipagError: a folder has no picture, or it cannot be told which prompt a picture shows.
    """
    report = Report()
    pictures = {}
    for label, folder in folders.items():
        pictures[label], problems = find_pictures(folder, prompts)
        report.columns[label] = []
        report.notes += problems
    sets = PictureSets(prompts, pictures, rivals, cache, compute)
    for name, add in measures.items():
        try:
            add(sets, report)
        except ClipagError as error:
            report.not_measured(name, error)
    return report


def add_judgements(name: str, sets: PictureSets, report: Report) -> None:
    """Add similarity, CLIPScore, R-Prec and top 5 by the judge of this name."""
    judge = load_judge(name, sets.compute.device)
    texts = judge.embed_texts(sets.prompts)
    for label, column in report.columns.items():
        warning = guided_by(judge, sets.pictures[label])
        if warning is not None:
            report.notes.append(f"{label}: {warning}")
        indices = torch.tensor([picture.prompt for picture in sets.pictures[label]])
        column += judged(judge.name, sets.embeddings(judge, label), texts, indices)


def add_aesthetics(weights: Path | None, clip: str, sets: PictureSets, report: Report) -> None:
    """Add the LAION aesthetic score, and the share of pictures with a higher one than the rival's.

    Args:
        weights: the aesthetic predictor's weights.
        clip: the CLIP that the predictor was made for.
        sets: what is measured.
        report: where it is added.
    """
    if weights is None:
        raise ClipagError(
            f"name {AESTHETIC_HEAD} (from christophschuhmann/improved-aesthetic-predictor) with "
            "`aesthetic`."
        )
    head = AestheticHead(weights)
    judge = load_judge(clip, sets.compute.device)
    scores = {}
    for label, column in report.columns.items():
        scores[label] = head.scores(sets.embeddings(judge, label))
        column.append(mean("aesthetics", "LAION", scores[label]))
    for label, rival in sets.rivals:
        our_indices, their_indices = sets.pairs(label, rival)
        ours, theirs = scores[label][our_indices], scores[rival][their_indices]
        for side, preferred in (
            (label, preference(ours, theirs)),
            (rival, preference(theirs, ours)),
        ):
            report.columns[side].append(mean("preference", "LAION", 100 * preferred))


def add_inception_score(weights: Path | None, sets: PictureSets, report: Report) -> None:
    """Add the Inception Score."""
    network = inception("logits_unbiased", weights)
    for label, column in report.columns.items():
        score = inception_score(
            sets.images(label, INCEPTION_SIDE), network, device=sets.compute.device
        )
        column.append(_without_interval("IS", score, sets, label))


def add_fid(
    reference: Path | None, weights: Path | None, sets: PictureSets, report: Report
) -> None:
    """Add the Fréchet inception distance to a folder of real pictures."""
    if reference is None:
        raise ClipagError("name a folder of real pictures with `reference`.")
    contents = read_folder(reference)
    report.notes += contents.problems
    network = inception("2048", weights)
    for label, column in report.columns.items():
        real = batches(contents.readable, INCEPTION_SIDE, sets.compute.batch)
        distance = fid(sets.images(label, INCEPTION_SIDE), real, network, sets.compute.device)
        column.append(_without_interval("FID", distance, sets, label))


def add_lpips(sets: PictureSets, report: Report) -> None:
    """Add LPIPS between each picture and its rival."""
    for pair in sets.rivals:
        ours, theirs = (
            batches([sets.paths(label)[i] for i in indices], LPIPS_SIDE, sets.compute.batch)
            for label, indices in zip(pair, sets.pairs(*pair), strict=True)
        )
        distances = 100 * lpips(ours, theirs, sets.compute.device)
        label, rival = pair
        report.columns[label].append(mean("LPIPS × 100", f"AlexNet, to {rival}", distances))


def _without_interval(metric: str, value: float, sets: PictureSets, label: str) -> Measurement:
    """Return a figure of a whole set, which has no interval."""
    return Measurement(metric, "InceptionV3", value, None, None, len(sets.pictures[label]))
