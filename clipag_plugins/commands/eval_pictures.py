"""clipag eval drawings and pictures: measure a folder of pictures."""

import argparse
from pathlib import Path

from .eval_options import add_metrics, compute_options, picture_metrics, write_report
from .options import Commands, command

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


def add(kinds: Commands) -> None:
    """Describe the kinds that measure a folder."""
    for name, summary, examples in (
        ("drawings", "measure drawings as Table 1 does", DRAWINGS_EXAMPLES),
        ("pictures", "measure pictures as Table 2 does", PICTURES_EXAMPLES),
    ):
        folder = command(kinds, name, summary, examples)
        folder.set_defaults(run=_folder)
        folder.add_argument("folder", type=Path, metavar="DIR", help="a folder of pictures")
        folder.add_argument(
            "--against", type=Path, metavar="DIR", help="rivals: preference, and LPIPS to them"
        )
        add_metrics(folder)


def _folder(options: argparse.Namespace) -> int:
    compute = compute_options(options)
    from ..evaluation.folders import read_prompts
    from ..evaluation.tables import measure_folders

    prompts = read_prompts(options.prompts)
    report = measure_folders(
        options.folder,
        prompts,
        options.kind,
        picture_metrics(options),
        options.out,
        compute,
        options.against,
    )
    return write_report(options, report)
