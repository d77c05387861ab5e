"""The paper's Tables 1 and 2 (Ganz & Elad, WACV 2024), and the same measures on any folder."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..arguments import RunOptions
from ..ascent import Ascent
from ..base import ClipagModel
from ..defaults import STROKE_STEPS, STROKES
from ..errors import ClipagError
from ..files import slug
from ..hub import load_model
from ..integrations import clipdraw
from ..sampler import sample, settings_for
from .drawing import draw_missing
from .judges import fingerprint
from .measures import (
    Measure,
    add_aesthetics,
    add_fid,
    add_inception_score,
    add_judgements,
    add_lpips,
    measure,
)
from .options import ComputeOptions, PictureMetrics, require_new_name
from .report import Report
from .sharing import is_first_process

CACHE = "embeddings"  # subfolder of an evaluation's folder
QUIET = RunOptions(truncate=True, progress=False)


def measures_of_drawings(metrics: PictureMetrics) -> dict[str, Measure]:
    """Return the measures of Table 1: judges and aesthetics."""
    aesthetics = partial(add_aesthetics, metrics.aesthetic, metrics.aesthetic_model)
    return {**_judgements(metrics), "aesthetics": aesthetics}


def measures_of_pictures(metrics: PictureMetrics) -> dict[str, Measure]:
    """Return the measures of Table 2: judges, Inception Score and FID."""
    if not is_first_process():
        return _judgements(metrics)
    return {
        **_judgements(metrics),
        "IS": partial(add_inception_score, metrics.inception),
        "FID": partial(add_fid, metrics.reference, metrics.inception),
    }


def _judgements(metrics: PictureMetrics) -> dict[str, Measure]:
    return {f"judge {name}": partial(add_judgements, name) for name in metrics.judges}


MEASURES = {"drawings": measures_of_drawings, "pictures": measures_of_pictures}


def measure_folders(
    folder: Path,
    prompts: Sequence[str],
    kind: str,
    metrics: PictureMetrics,
    work: Path,
    compute: ComputeOptions,
    against: Path | None = None,
) -> Report:
    """Measure a folder of pictures, or two rivals.

    Args:
        folder: the pictures.
        prompts: what they show, as `folders.find_pictures` assigns them.
        kind: "drawings" for the measures of Table 1, "pictures" for those of Table 2.
        metrics: judges and weights.
        work: folder where embeddings are kept, so that an interrupted call can resume.
        compute: device and batch size.
        against: the rivals' pictures. Both folders are measured; preference and LPIPS compare them.

    Raises:
        ClipagError: `kind` is unknown, a folder has no picture, or it cannot be told which prompt a
            picture shows.
    """
    if kind not in MEASURES:
        raise ClipagError(f"`kind` is {kind!r}: choose from {', '.join(MEASURES)}.")
    measures = MEASURES[kind](metrics)
    folders, rivals = {str(folder): folder}, []
    if against is not None:
        folders[str(against)] = against
        rivals.append((str(folder), str(against)))
        if is_first_process():
            measures["LPIPS"] = add_lpips
    return measure(prompts, folders, rivals, measures, work / CACHE, compute)


def table1(
    prompts: Sequence[str],
    models: Sequence[str],
    metrics: PictureMetrics,
    work: Path,
    compute: ComputeOptions,
    *,
    steps: int | None = None,
    strokes: int = STROKES,
    seed: int = 0,
) -> Report:
    """Make Table 1: CLIPDraw by a vanilla and a robust model, without and with augmentation.

    Args:
        prompts: what to draw.
        models: the vanilla model and the robust one, as `load_model` takes them.
        metrics: judges and weights.
        work: folder for drawings and embeddings. A later call with the same arguments resumes.
        compute: device and batch size.
        steps: updates of a drawing; by default CLIPDraw's.
        strokes: paths of a drawing.
        seed: of every drawing.

    Raises:
        ClipagError: there are not two different models, an argument is out of range, or `work` has
            drawings that were made with other arguments.
        KeyboardInterrupt: Ctrl-C ended a drawing.
    """
    if len(models) != 2:
        raise ClipagError(f"`models` names {len(models)}: Table 1 compares two.")
    loaded = [load_model(name, compute.device) for name in models]
    weights = [fingerprint(model) for model in loaded]
    steps = STROKE_STEPS if steps is None else steps
    folders: dict[str, Path] = {}
    rivals = []
    for augment in (False, True):
        labels = [f"{model.name}, {'aug.' if augment else 'no aug.'}" for model in loaded]
        for label, model, digest in zip(labels, loaded, weights, strict=True):
            require_new_name(label, folders)
            folders[label] = work / slug(label)
            metadata = {
                "model": model.name,
                "weights": digest,
                "seed": seed,
                "steps": steps,
                "strokes": strokes,
                "views": "augmented" if augment else "the drawing itself",
            }
            draw = partial(
                _draw_strokes, model, steps=steps, strokes=strokes, seed=seed, augment=augment
            )
            draw_missing(draw, prompts, folders[label], metadata, compute.batch)
        rivals.append((labels[0], labels[1]))
    measures = measures_of_drawings(metrics)
    return measure(prompts, folders, rivals, measures, work / CACHE, compute)


def _draw_strokes(
    model: ClipagModel, prompts: list[str], *, steps: int, strokes: int, seed: int, augment: bool
) -> Ascent:
    return clipdraw.draw(
        prompts,
        model,
        steps=steps,
        seed=seed,
        drawing=clipdraw.Drawing(strokes),
        augment=augment,
        options=RunOptions(truncate=True, progress=False),
    )


def table2(
    prompts: Sequence[str],
    models: Sequence[str],
    metrics: PictureMetrics,
    work: Path,
    compute: ComputeOptions,
    *,
    steps: int | None = None,
    seed: int = 0,
) -> Report:
    """Make Table 2: pictures of captions, made without a generator.

    Args:
        prompts: what to draw.
        models: the models that guide, as `load_model` takes them.
        metrics: judges and weights.
        work: folder for pictures and embeddings. A later call with the same arguments resumes.
        compute: device and batch size.
        steps: updates of a picture; by default what suits the model.
        seed: of every picture.

    Raises:
        ClipagError: two models have the same name, an argument is out of range, or `work` has
            pictures that were made with other arguments.
        KeyboardInterrupt: Ctrl-C ended a picture.
    """
    folders: dict[str, Path] = {}
    for name in models:
        model = load_model(name, compute.device)
        require_new_name(model.name, folders)
        folders[model.name] = work / slug(model.name)
        settings = settings_for(model, steps=steps)
        metadata = {
            "model": model.name,
            "weights": fingerprint(model),
            "seed": seed,
            "steps": settings.steps,
            "init": "gmm",
            "tries": settings.tries,
        }
        draw = partial(sample, model=model, settings=settings, seed=seed, options=QUIET)
        draw_missing(draw, prompts, folders[model.name], metadata, compute.batch)
    measures = measures_of_pictures(metrics)
    return measure(prompts, folders, [], measures, work / CACHE, compute)
