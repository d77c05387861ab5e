"""The PAG score of models on a folder of pictures: how well their input gradients are aligned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..base import ClipagModel
from ..defaults import SAMPLES, SIDE, SIGMA
from ..errors import ClipagError, library
from ..hub import load_model
from ..pag import judged_score, picture_score
from ..pictures import read_square
from ..smoothing import smooth
from .folders import find_pictures
from .judges import ClipJudge, fingerprint, load_judge
from .options import ComputeOptions, require_new_name
from .report import Report, compared


@dataclass(frozen=True)
class AlignmentSettings:
    """How alignment is measured.

    Attributes:
        sigmas: noise of the first model's smoothing, for pixels in [0, 1]; a column for each.
        samples: noisy copies of an image in the smoothed models.
        judges: models that score gradients besides the pictures, as `load_judge` takes them.
        size: side of the pictures in pixels.
        seed: of all random numbers.
    """

    sigmas: Sequence[float] = (SIGMA,)
    samples: int = SAMPLES
    judges: Sequence[str] = ()
    size: int = SIDE
    seed: int = 0


def pag_table(
    folder: Path,
    prompts: Sequence[str],
    models: Sequence[str],
    settings: AlignmentSettings,
    compute: ComputeOptions,
) -> Report:
    """Measure the PAG score of models: by real pictures (`picture_score`) and by judges.

    The first picture of each prompt counts. The models must not have been trained on it.

    Args:
        folder: the pictures.
        prompts: what they show, as `find_pictures` assigns them.
        models: as `load_model` takes them; the first one is also smoothed.
        settings: smoothing and judges.
        compute: device, and texts that a judge scores at once.

    Raises:
        ClipagError: the pictures show fewer than two prompts, two models have the same name, or
            scipy is not installed.
    """
    library("scipy.stats", "eval")  # fail before the gradients are computed, not after
    report = Report()
    pictures, report.notes = find_pictures(folder, prompts)
    paths: dict[str, Path] = {}
    for picture in pictures:
        paths.setdefault(prompts[picture.prompt], picture.path)
    texts = list(paths)
    images = torch.stack([read_square(path, settings.size) for path in paths.values()])
    images = images.to(compute.device)
    columns, fingerprints = _load_columns(models, settings, compute)

    def by_pictures(model: ClipagModel) -> Tensor:
        return picture_score(model, texts, images, settings.seed)

    _add_scores(report, "pictures", columns, by_pictures)
    for name in settings.judges:
        try:
            judge = load_judge(name, compute.device)
        except ClipagError as error:
            report.not_measured(f"judge {name}", error)
            continue
        if judge.weights in fingerprints:
            report.notes.append(f"{name} is one of the models: it likes its own gradient.")
        _add_scores(report, judge.name, columns, _by_judge(judge, texts, settings, compute))
    return report


def _load_columns(
    models: Sequence[str], settings: AlignmentSettings, compute: ComputeOptions
) -> tuple[dict[str, ClipagModel], list[str]]:
    """Return the model of each column, smoothed ones included, and the models' fingerprints."""
    columns: dict[str, ClipagModel] = {}
    fingerprints = []
    for name in models:
        model = load_model(name, compute.device)
        require_new_name(model.name, columns)
        columns[model.name] = model
        fingerprints.append(fingerprint(model))
        for sigma in settings.sigmas if len(columns) == 1 else ():
            label = f"{model.name}, smoothed by {sigma:g}"
            require_new_name(label, columns)
            columns[label] = smooth(model, sigma, settings.samples, settings.seed)
    return columns, fingerprints


def _by_judge(
    judge: ClipJudge, texts: Sequence[str], settings: AlignmentSettings, compute: ComputeOptions
) -> Callable[[ClipagModel], Tensor]:
    def score(model: ClipagModel) -> Tensor:
        return judged_score(model, judge, texts, settings.size, compute.batch, settings.seed)

    return score


def _add_scores(
    report: Report,
    judge: str,
    columns: Mapping[str, ClipagModel],
    score: Callable[[ClipagModel], Tensor],
) -> None:
    """Score the model of each column, and add the means and their differences to the first."""
    scores = {label: score(model) for label, model in tqdm(columns.items(), desc=judge)}
    for label, column in compared("PAG score", judge, scores).items():
        report.columns.setdefault(label, []).extend(column)
