"""clipag eval: measure pictures, models and the paper's tables."""

import argparse
import sys
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import RunOptions
from ..defaults import SAMPLES, SIGMA
from ..errors import ClipagError, library
from ..files import require_writable_or_creatable, slug
from .attack import add_threat_model, threat_model
from .options import DEVICE_HELP, Commands, add_models, choose_device, command, seed_number

if TYPE_CHECKING:
    from ..evaluation.folders import Picture
    from ..evaluation.report import Report

EXAMPLES = """\
examples:
  clipag eval drawings drawings/ --prompts prompts.txt --judge ConvNeXt ViT-H/14
  clipag eval pictures pictures/ --prompts captions.txt --reference coco/val2017
  clipag eval table1 --prompts prompts.txt --models vanilla:ViT-B-32-laion2B ViT-B/32
  torchrun --nproc-per-node 8 -m clipag_plugins eval table2 \\
      --prompts captions_val2014.json --count 30000 --models ViT-B/32 --reference val2014/
  clipag eval robustness photos/ --models vanilla:ViT-B-32-laion2B ViT-B/32
  clipag eval pag photos/ --prompts captions.txt --models vanilla:ViT-B-32-laion2B ViT-B/32

all need pip install 'clipag-plugins[eval]'.
"""
DRAWINGS_EXAMPLES = """\
examples:
  clipag eval drawings drawings/ --prompts prompts.txt --judge ConvNeXt ViT-H/14
  clipag eval drawings ours/ --against theirs/ --prompts prompts.txt \\
      --aesthetic sac+logos+ava1-l14-linearMSE.pth           aesthetics and preference too
"""
PICTURES_EXAMPLES = """\
examples:
  clipag eval pictures pictures/ --prompts prompts.txt --judge vanilla:RN50
  clipag eval pictures pictures/ --prompts captions.txt --reference coco/val2017      FID too
"""
TABLE_EXAMPLES = """\
examples:
  clipag eval {name} --prompts prompts.txt --judge ConvNeXt ViT-H/14 --out {name}/
  clipag eval {name} --prompts prompts.txt --models vanilla:ViT-B-32-laion2B ViT-B/32 --seed 1
  torchrun --nproc-per-node 8 -m clipag_plugins eval {name} --prompts prompts.txt

it goes on where it was stopped; under torchrun each process takes its share.
"""
ROBUSTNESS_EXAMPLES = """\
examples:
  clipag eval robustness imagenette/val                      a folder for each class
  clipag eval robustness photos/ --norm l2 --eps 1.5 --steps 5 --attacks clean pgd
"""

PAG_EXAMPLES = """\
examples:
  clipag eval pag pictures/ --prompts captions.txt           vanilla, smoothed, CLIPAG
  clipag eval pag pictures/ --prompts captions.txt --sigma   without smoothing
  clipag eval pag pictures/ --prompts captions.txt --judge ViT-H/14 \\
      --models vanilla:ViT-B-32-laion2B FARE4-ViT-B/32 ViT-B/32

the score: how much nearer a model's input gradient leads to a picture of its text than to those of
the other texts, in hundredths of the cosine; and by judges, how much a step along it shows them of
the text, in hundredths of the similarity. Pictures and judges must be new to the models.
"""


def add(commands: Commands) -> None:
    """Describe `clipag eval` and what it measures."""
    evaluate = command(commands, "eval", "measure pictures, models, the paper's tables", EXAMPLES)
    kinds = evaluate.add_subparsers(dest="kind", required=True)

    drawings = command(kinds, "drawings", "measure drawings as Table 1 does", DRAWINGS_EXAMPLES)
    drawings.set_defaults(run=_folder)
    pictures = command(kinds, "pictures", "measure pictures as Table 2 does", PICTURES_EXAMPLES)
    pictures.set_defaults(run=_folder)
    for parser in (drawings, pictures):
        parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of pictures")
        parser.add_argument(
            "--against", type=Path, metavar="DIR", help="rivals: preference, and LPIPS to them"
        )
        _add_measures(parser)

    for name, run, what in (
        ("table1", _table1, "CLIPDraw by both models, with and without augmentation"),
        ("table2", _table2, "generator-free pictures of captions"),
    ):
        table = command(kinds, name, what, TABLE_EXAMPLES.format(name=name))
        table.set_defaults(run=run)
        _add_measures(table)
        add = table.add_argument
        add(
            "--models",
            nargs="+",
            default=["clip-mini", "clipag-mini"] if name == "table1" else ["clipag-mini"],
            metavar="MODEL",
            help="what guides, vanilla first (default: %(default)s)",
        )
        add("--seed", type=seed_number, default=0, help="of every picture (default: %(default)s)")
        add("--count", type=int, help="only so many of the prompts, drawn at random by the seed")
        add("--steps", type=int, help="updates of a picture (default: as the command that draws)")
        if name == "table1":
            add("--strokes", type=int, default=256, help="of a drawing (default: %(default)s)")

    robustness = command(
        kinds, "robustness", "zero-shot accuracy, clean and attacked", ROBUSTNESS_EXAMPLES
    )
    robustness.set_defaults(run=_robustness)
    add = robustness.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder with a folder of pictures a class")
    add_models(robustness)
    add(
        "--attacks",
        nargs="+",
        choices=["clean", "pgd", "autoattack"],
        default=["clean", "pgd", "autoattack"],
        help="(default: all)",
    )
    add("--template", default="{}", help="the text of a class (default: its name alone)")
    add("--size", type=int, default=224, help="side in pixels (default: %(default)s)")
    add("--seed", type=seed_number, default=0, help="of the attacks (default: %(default)s)")
    add_threat_model(robustness)
    _add_where(robustness)

    pag = command(kinds, "pag", "how much gradients mean: the PAG score", PAG_EXAMPLES)
    pag.set_defaults(run=_pag)
    add = pag.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder of pictures, one of each prompt counts")
    add(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="what the pictures show: a prompt on each line, or COCO's captions (.json)",
    )
    add_models(pag)
    add(
        "--sigma",
        nargs="*",
        type=float,
        default=[SIGMA],
        help="noise of the first model's smoothing, for pixels in [0, 1]: a column for each number "
        f"(default: {SIGMA})",
    )
    add("--samples", type=int, default=SAMPLES, help="noisy copies (default: %(default)s)")
    add(
        "--judge",
        nargs="+",
        default=[],
        metavar="NAME",
        help="score by these too: the paper's ConvNeXt and ViT-H/14, any known model or weights "
        "file that is none of the models (default: by pictures alone)",
    )
    add("--size", type=int, default=224, help="side in pixels (default: %(default)s)")
    add("--seed", type=seed_number, default=0, help="of all random numbers (default: %(default)s)")
    _add_where(pag)


def _add_measures(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="a prompt on each line, or COCO's captions (.json): all are R-Prec's candidates",
    )
    add(
        "--judge",
        nargs="+",
        default=["ConvNeXt", "ViT-H/14"],
        metavar="NAME",
        help="the paper's ConvNeXt and ViT-H/14 (the default), any known model or weights file",
    )
    add(
        "--aesthetic", type=Path, metavar="FILE.pth", help="the LAION aesthetic predictor's weights"
    )
    add(
        "--aesthetic-model",
        default="vanilla:ViT-L/14",
        metavar="NAME",
        help="the CLIP that it was made for (default: %(default)s)",
    )
    add("--reference", type=Path, metavar="DIR", help="real pictures, for FID")
    add("--inception", type=Path, metavar="FILE.pth", help="InceptionV3's weights, for IS and FID")
    _add_where(parser)


def _add_where(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch", type=int, default=32, help="pictures at once (default: %(default)s)")
    add("--device", help=DEVICE_HELP)
    add("--out", type=Path, default=Path("evaluation"), metavar="DIR",
        help="where tables go, and what was computed so far (default: %(default)s)")  # fmt: skip


def _check(options: argparse.Namespace) -> None:
    if options.batch < 1:
        raise ClipagError(f"--batch is {options.batch}: it must be at least 1.")
    require_writable_or_creatable(options.out)


def _folder(options: argparse.Namespace) -> int:
    _check(options)
    from ..evaluation.folders import read_prompts
    from ..evaluation.report import Report

    prompts = read_prompts(options.prompts)
    report = Report()
    sets = {str(folder): folder for folder in (options.folder, options.against) if folder}
    rivals = [(str(options.folder), str(options.against))] if options.against else []
    _measure(options, prompts, sets, report, rivals)
    return _finish(options, report, options.kind)


def _table1(options: argparse.Namespace) -> int:
    _check(options)
    if len(options.models) != 2:
        raise ClipagError(f"--models names {len(options.models)}: Table 1 compares two.")
    from ..evaluation.drawing import draw_missing
    from ..evaluation.folders import read_prompts
    from ..evaluation.judges import (
        fingerprint,
    )
    from ..evaluation.report import Report
    from ..hub import load_model
    from ..integrations import clipdraw

    prompts = read_prompts(options.prompts, options.count, options.seed)
    steps = clipdraw.STEPS if options.steps is None else options.steps
    models = [load_model(name, choose_device(options.device)) for name in options.models]
    weights = [fingerprint(model) for model in models]
    sets: dict[str, Path] = {}
    rivals = []
    for augment in (False, True):
        labels = []
        for model, digest in zip(models, weights, strict=True):
            label = f"{model.name}, {'aug.' if augment else 'no aug.'}"
            _need_new(label, sets)
            labels.append(label)
            sets[label] = options.out / slug(label)
            facts = {
                "model": model.name,
                "weights": digest,
                "seed": options.seed,
                "steps": steps,
                "strokes": options.strokes,
                "views": "augmented" if augment else "the drawing itself",
            }
            draw_missing(
                lambda batch, model=model, augment=augment: clipdraw.draw(  # type: ignore[misc]
                    batch, model, strokes=options.strokes, steps=steps, seed=options.seed,
                    augment=augment, truncate=True, progress=False,
                )[1],
                prompts,
                sets[label],
                facts,
                options.batch,
            )  # fmt: skip
        rivals.append((labels[0], labels[1]))
    report = Report()
    _measure(options, prompts, sets, report, rivals)
    return _finish(options, report, "table1")


def _table2(options: argparse.Namespace) -> int:
    _check(options)
    from ..evaluation.drawing import draw_missing
    from ..evaluation.folders import read_prompts
    from ..evaluation.judges import (
        fingerprint,
    )
    from ..evaluation.report import Report
    from ..hub import load_model
    from ..sampler import sample, settings_for

    prompts = read_prompts(options.prompts, options.count, options.seed)
    sets: dict[str, Path] = {}
    quiet = RunOptions(truncate=True, progress=False)
    for name in options.models:
        model = load_model(name, choose_device(options.device))
        settings = settings_for(model)
        steps = settings.steps if options.steps is None else options.steps
        _need_new(model.name, sets)
        sets[model.name] = options.out / slug(model.name)
        facts = {
            "model": model.name,
            "weights": fingerprint(model),
            "seed": options.seed,
            "steps": steps,
            "init": "gmm",
            "tries": settings.tries,
        }
        draw_missing(
            lambda batch, model=model, steps=steps: sample(  # type: ignore[misc]
                batch, model, steps=steps, seed=options.seed, options=quiet
            ),
            prompts,
            sets[model.name],
            facts,
            options.batch,
        )
    report = Report()
    _measure(options, prompts, sets, report, [])
    return _finish(options, report, "table2")


def _need_new(label: str, labels: Container[str]) -> None:
    if label in labels:
        raise ClipagError(f"Two --models are called {label!r}: rename one's file or folder.")


def _measure(
    options: argparse.Namespace,
    prompts: Sequence[str],
    sets: dict[str, Path],
    report: "Report",
    rivals: Sequence[tuple[str, str]],
) -> None:
    """Measure sets of pictures; what cannot be measured is noted, and the rest goes on."""
    import torch

    from ..evaluation.folders import batches, find_pictures, readable
    from ..evaluation.judges import (
        AESTHETIC_HEAD,
        AestheticHead,
        embed,
        guided_by,
        load_judge,
    )
    from ..evaluation.metrics import fid, inception, inception_score, judged, lpips, preference
    from ..evaluation.report import Row, mean
    from ..evaluation.sharing import shard

    device = choose_device(options.device)
    kept = options.out / "embeddings"
    pictures, paths = {}, {}
    for label, folder in sets.items():
        pictures[label], amiss = find_pictures(folder, prompts)
        paths[label] = [picture.path for picture in pictures[label]]
        report.columns[label] = []
        report.notes += amiss

    def by_judge(name: str) -> None:
        judge = load_judge(name, device)
        texts = judge.embed_texts(prompts)
        for label, rows in report.columns.items():
            warning = guided_by(judge, pictures[label])
            if warning is not None:
                report.notes.append(f"{label}: {warning}")
            z = embed(judge, paths[label], kept, options.batch)
            own = torch.tensor([picture.prompt for picture in pictures[label]])
            rows += judged(judge.name, z, texts, own)

    def by_aesthetics() -> None:
        if options.aesthetic is None:
            raise ClipagError(
                f"bring {AESTHETIC_HEAD} (of "
                "christophschuhmann/improved-aesthetic-predictor) with --aesthetic."
            )
        head = AestheticHead(options.aesthetic)
        judge = load_judge(options.aesthetic_model, device)
        scores = {}
        for label, rows in report.columns.items():
            z = embed(judge, paths[label], kept, options.batch)
            scores[label] = head.scores(z)
            rows.append(mean("aesthetics", "LAION", scores[label]))
        for pair in rivals:
            (a, x), (b, y) = zip(
                pair, _same_prompts(*(pictures[side] for side in pair)), strict=True
            )
            for label, ours, theirs in ((a, scores[a][x], scores[b][y]),
                                        (b, scores[b][y], scores[a][x])):  # fmt: skip
                liked = 100 * preference(ours, theirs)
                report.columns[label].append(mean("preference", "LAION", liked))

    def by_inception() -> None:
        network = inception("logits_unbiased", options.inception)
        for label, rows in report.columns.items():
            images = batches(paths[label], 299, options.batch)
            value = inception_score(images, network, device=device)
            rows.append(Row("IS", "InceptionV3", value, None, None, len(paths[label])))

    def by_distance() -> None:
        if options.reference is None:
            raise ClipagError("bring real pictures with --reference.")
        found, amiss = readable(options.reference)
        report.notes += amiss
        real = [path for path, facts in found.items() if facts is not None]
        network = inception("2048", options.inception)
        for label, rows in report.columns.items():
            ours, theirs = (batches(side, 299, options.batch) for side in (paths[label], real))
            value = fid(ours, theirs, network, device)
            rows.append(Row("FID", "InceptionV3", value, None, None, len(paths[label])))

    def by_lpips() -> None:
        for a, b in rivals:
            ours, theirs = (
                batches([paths[label][i] for i in side], 224, options.batch)
                for label, side in zip((a, b), _same_prompts(pictures[a], pictures[b]), strict=True)
            )
            values = 100 * lpips(ours, theirs, device)
            report.columns[a].append(mean("LPIPS × 100", f"AlexNet, to {b}", values))

    measures: dict[str, Callable[[], None]] = {
        f"judge {name}": partial(by_judge, name) for name in options.judge
    }
    if options.kind in ("drawings", "table1"):
        measures["aesthetics"] = by_aesthetics
    # What has no embeddings to keep is for one process alone.
    elif shard()[0] == 0:
        measures |= {"IS": by_inception, "FID": by_distance}
    if options.kind in ("drawings", "pictures") and rivals and shard()[0] == 0:
        measures["LPIPS"] = by_lpips
    for what, measure in measures.items():
        try:
            measure()
        except ClipagError as error:
            report.notes.append(f"Not measured, {what}: {error}")


def _same_prompts(a: Sequence["Picture"], b: Sequence["Picture"]) -> tuple[list[int], list[int]]:
    """Return which pictures of two sets face each other: those of one prompt, in their order."""
    waiting: dict[int, list[int]] = {}
    for i, picture in enumerate(b):
        waiting.setdefault(picture.prompt, []).append(i)
    pairs = [
        (i, waiting[picture.prompt].pop(0))
        for i, picture in enumerate(a)
        if waiting.get(picture.prompt)
    ]
    if not pairs:
        raise ClipagError("the rivals have no prompt in common.")
    return [i for i, _ in pairs], [j for _, j in pairs]


def _finish(options: argparse.Namespace, report: "Report", name: str) -> int:
    from ..evaluation.sharing import shard

    if shard()[0] > 0:
        return 0
    if not any(report.columns.values()):
        raise ClipagError("Nothing could be measured. " + " ".join(report.notes))
    report.write(options.out, name)
    for note in report.notes:
        print(f"clipag: {note}", file=sys.stderr)
    print(report.table())
    return 0


def _robustness(options: argparse.Namespace) -> int:
    _check(options)
    if "{}" not in options.template:
        raise ClipagError(f"--template {options.template!r} has no {{}} for the class's name.")

    import torch
    from tqdm import tqdm

    from ..evaluation import robustness
    from ..evaluation.report import Report, mean
    from ..hub import load_model
    from ..pictures import read_square

    threat, device = threat_model(options), choose_device(options.device)
    library("scipy.stats", "eval")  # before hours of attacks, not after them
    report = Report()
    classes, pictures, report.notes = robustness.labelled_pictures(options.folder)
    budget = f"{options.norm}, eps {options.eps:g}"
    names = {"clean": "clean", "pgd": f"PGD, {options.steps} steps, {budget}",
             "autoattack": f"AutoAttack, {budget}"}  # fmt: skip
    for name in options.models:
        model = load_model(name, device)
        _need_new(model.name, report.columns)
        texts = [options.template.replace("{}", name) for name in classes]
        classifier = robustness.ZeroShot(model, texts)
        right: dict[str, list[torch.Tensor]] = {attack: [] for attack in options.attacks}
        for first in tqdm(range(0, len(pictures), options.batch), desc=model.name, unit="batch"):
            chunk = pictures[first : first + options.batch]
            images = torch.stack([read_square(path, options.size) for path, _ in chunk]).to(device)
            labels = torch.tensor([label for _, label in chunk], device=device)
            for attack in [*right]:
                try:
                    right[attack].append(
                        robustness.correct(classifier, images, labels, attack, threat, options.seed)
                    )
                except ClipagError as error:
                    report.notes.append(f"Not measured, {names[attack]}: {error}")
                    del right[attack]
        report.columns[model.name] = [
            mean("accuracy", names[attack], 100 * torch.cat(parts).float().cpu())
            for attack, parts in right.items()
        ]
    return _finish(options, report, "robustness")


def _pag(options: argparse.Namespace) -> int:
    _check(options)

    import torch
    from tqdm import tqdm

    from .. import pag
    from ..base import ClipagModel
    from ..evaluation.folders import find_pictures, read_prompts
    from ..evaluation.judges import (
        fingerprint,
        load_judge,
    )
    from ..evaluation.report import Report, compared
    from ..hub import load_model
    from ..pictures import read_square
    from ..smoothing import smooth

    device = choose_device(options.device)
    library("scipy.stats", "eval")  # before the gradients, not after them
    prompts = read_prompts(options.prompts)
    report = Report()
    found, report.notes = find_pictures(options.folder, prompts)
    first: dict[str, Path] = {}
    for picture in found:
        first.setdefault(prompts[picture.prompt], picture.path)
    texts = list(first)
    pictures = torch.stack([read_square(path, options.size) for path in first.values()]).to(device)
    models: dict[str, ClipagModel] = {}
    digests: list[str] = []
    for name in options.models:
        model = load_model(name, device)
        _need_new(model.name, models)
        models[model.name] = model
        digests.append(fingerprint(model))
        if len(models) == 1:
            for sigma in options.sigma:
                label = f"{model.name}, smoothed by {sigma:g}"
                _need_new(label, models)
                models[label] = smooth(model, sigma, options.samples, options.seed)

    def score(judge: str, by: Callable[[ClipagModel], torch.Tensor]) -> None:
        scores = {label: by(model) for label, model in tqdm(models.items(), desc=judge)}
        for label, rows in compared("PAG score", judge, scores).items():
            report.columns.setdefault(label, []).extend(rows)

    score("pictures", lambda model: pag.picture_score(model, texts, pictures, options.seed))
    for name in options.judge:
        try:
            judge = load_judge(name, device)
        except ClipagError as error:
            report.notes.append(f"Not measured, judge {name}: {error}")
            continue
        if judge.weights in digests:
            report.notes.append(f"{name} is one of the models: it likes its own gradient.")
        score(
            judge.name,
            lambda model, judge=judge: pag.judged_score(  # type: ignore[misc]
                model, judge, texts, options.size, options.batch, options.seed
            ),
        )
    return _finish(options, report, "pag")
