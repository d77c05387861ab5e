"""clipag eval table1 and table2: draw and measure what the paper's tables show."""

import argparse

from ..defaults import STROKES
from .eval_options import add_metrics, compute_options, picture_metrics, write_report
from .options import Commands, command, seed_number

TABLE_EXAMPLES = """\
examples:
  clipag eval {name} --prompts prompts.txt --judge ConvNeXt ViT-H/14 --out {name}/
  clipag eval {name} --prompts prompts.txt --models vanilla:ViT-B-32-laion2B ViT-B/32 --seed 1
  torchrun --nproc-per-node 8 -m clipag_plugins eval {name} --prompts prompts.txt

an interrupted run resumes; under torchrun each process takes its share.
"""


def add(kinds: Commands) -> None:
    """Describe the paper's tables."""
    examples = TABLE_EXAMPLES.format(name="table1")
    summary = "CLIPDraw by both models, with and without augmentation"
    table1 = command(kinds, "table1", summary, examples)
    table1.set_defaults(run=_table1)
    add_metrics(table1)
    _add_drawing(table1, ["clip-mini", "clipag-mini"])
    table1.add_argument(
        "--strokes", type=int, default=STROKES, help="of a drawing (default: %(default)s)"
    )
    examples = TABLE_EXAMPLES.format(name="table2")
    table2 = command(kinds, "table2", "generator-free pictures of captions", examples)
    table2.set_defaults(run=_table2)
    add_metrics(table2)
    _add_drawing(table2, ["clipag-mini"])


def _add_drawing(parser: argparse.ArgumentParser, models: list[str]) -> None:
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        default=models,
        metavar="MODEL",
        help="the models that guide, vanilla first (default: %(default)s)",
    )
    add("--seed", type=seed_number, default=0, help="of every picture (default: %(default)s)")
    add("--count", type=int, help="use this many of the prompts, drawn at random by the seed")
    add("--steps", type=int, help="updates of a picture (default: as the command that draws)")


def _table1(options: argparse.Namespace) -> int:
    compute = compute_options(options)
    from ..evaluation.folders import read_prompts
    from ..evaluation.tables import table1

    prompts = read_prompts(options.prompts, options.count, options.seed)
    report = table1(
        prompts,
        options.models,
        picture_metrics(options),
        options.out,
        compute,
        steps=options.steps,
        strokes=options.strokes,
        seed=options.seed,
    )
    return write_report(options, report)


def _table2(options: argparse.Namespace) -> int:
    compute = compute_options(options)
    from ..evaluation.folders import read_prompts
    from ..evaluation.tables import table2

    prompts = read_prompts(options.prompts, options.count, options.seed)
    report = table2(
        prompts,
        options.models,
        picture_metrics(options),
        options.out,
        compute,
        steps=options.steps,
        seed=options.seed,
    )
    return write_report(options, report)
