"""clipag eval robustness and pag: measure models."""

import argparse
from pathlib import Path

from ..defaults import ATTACKS, SAMPLES, SIDE, SIGMA
from .attack import add_threat_model, threat_model
from .eval_options import add_compute_options, compute_options, write_report
from .options import Commands, add_models, command, seed_number

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

The score by pictures is the cosine between a model's input gradient for a text and the direction to
a picture of that text, minus its mean over pictures of the other texts, times 100. The score by a
judge is the rise of the judge's similarity to the text after a step along the gradient, minus the
rise after a random step, times 100. Neither pictures nor judges may have been used to train the
models.
"""


def add(kinds: Commands) -> None:
    """Describe the kinds that measure models."""
    _add_robustness(kinds)
    _add_pag(kinds)


def _add_robustness(kinds: Commands) -> None:
    summary = "zero-shot accuracy, clean and attacked"
    robustness = command(kinds, "robustness", summary, ROBUSTNESS_EXAMPLES)
    robustness.set_defaults(run=_robustness)
    add = robustness.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder with a folder of pictures a class")
    add_models(robustness)
    add(
        "--attacks",
        nargs="+",
        choices=ATTACKS,
        default=list(ATTACKS),
        help="(default: all)",
    )
    add("--template", default="{}", help="the text of a class (default: its name alone)")
    add("--size", type=int, default=SIDE, help="side in pixels (default: %(default)s)")
    add("--seed", type=seed_number, default=0, help="of the attacks (default: %(default)s)")
    add_threat_model(robustness)
    add_compute_options(robustness)


def _add_pag(kinds: Commands) -> None:
    pag = command(kinds, "pag", "how well gradients are aligned: the PAG score", PAG_EXAMPLES)
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
    add("--size", type=int, default=SIDE, help="side in pixels (default: %(default)s)")
    add("--seed", type=seed_number, default=0, help="of all random numbers (default: %(default)s)")
    add_compute_options(pag)


def _robustness(options: argparse.Namespace) -> int:
    compute = compute_options(options)
    from ..evaluation.robustness import RobustnessSettings, robustness_table

    settings = RobustnessSettings(
        threat_model(options), options.attacks, options.template, options.size, options.seed
    )
    report = robustness_table(options.folder, options.models, settings, compute)
    return write_report(options, report)


def _pag(options: argparse.Namespace) -> int:
    compute = compute_options(options)
    from ..evaluation.alignment import AlignmentSettings, pag_table
    from ..evaluation.folders import read_prompts

    settings = AlignmentSettings(
        options.sigma, options.samples, options.judge, options.size, options.seed
    )
    prompts = read_prompts(options.prompts)
    report = pag_table(options.folder, prompts, options.models, settings, compute)
    return write_report(options, report)
