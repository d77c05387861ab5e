"""Options and output that the kinds of `clipag eval` share."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation.options import ComputeOptions, PictureMetrics
from ..files import require_writable_or_creatable
from .messages import as_options
from .options import DEVICE_HELP, choose_device

if TYPE_CHECKING:
    from ..evaluation.report import Report


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """Add the batch size, the device and the output folder."""
    add = parser.add_argument
    add(
        "--batch",
        type=int,
        default=ComputeOptions.batch,
        help="pictures at once (default: %(default)s)",
    )
    add("--device", help=DEVICE_HELP)
    add(
        "--out",
        type=Path,
        default=Path("evaluation"),
        metavar="DIR",
        help="folder for tables and for what was computed so far (default: %(default)s)",
    )


def compute_options(options: argparse.Namespace) -> ComputeOptions:
    """Return the options of `add_compute_options` as the library takes them.

    Raises:
        ClipagError: the batch size or the device is impossible, or --out cannot be written to.
    """
    require_writable_or_creatable(options.out)
    return ComputeOptions(choose_device(options.device), options.batch)


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Add the prompts, and what pictures of them are measured with."""
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
        default=list(PictureMetrics.judges),
        metavar="NAME",
        help="the paper's ConvNeXt and ViT-H/14 (the default), any known model or weights file",
    )
    add(
        "--aesthetic", type=Path, metavar="FILE.pth", help="the LAION aesthetic predictor's weights"
    )
    add(
        "--aesthetic-model",
        default=PictureMetrics.aesthetic_model,
        metavar="NAME",
        help="the CLIP that the predictor was made for (default: %(default)s)",
    )
    add("--reference", type=Path, metavar="DIR", help="real pictures, for FID")
    add("--inception", type=Path, metavar="FILE.pth", help="InceptionV3's weights, for IS and FID")
    add_compute_options(parser)


def picture_metrics(options: argparse.Namespace) -> PictureMetrics:
    """Return the options of `add_metrics` as the library takes them."""
    return PictureMetrics(
        options.judge,
        options.aesthetic,
        options.aesthetic_model,
        options.reference,
        options.inception,
    )


def write_report(options: argparse.Namespace, report: "Report") -> int:
    """Write a report to --out and print it, in the first process only; return the exit code.

    Raises:
        ClipagError: nothing could be measured.
    """
    from ..evaluation.sharing import is_first_process

    if not is_first_process():
        return 0
    report.require_measurements()
    report.notes = [as_options(note, options) for note in report.notes]
    report.write(options.out, options.kind)
    for note in report.notes:
        print(f"clipag: {note}", file=sys.stderr)
    print(report.table())
    return 0
