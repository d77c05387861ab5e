"""clipag eval: measure pictures, models and the paper's tables."""

from . import eval_models, eval_pictures, eval_tables
from .options import Commands, command

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


def add(commands: Commands) -> None:
    """Describe `clipag eval` and what it measures."""
    evaluate = command(commands, "eval", "measure pictures, models, the paper's tables", EXAMPLES)
    kinds = evaluate.add_subparsers(dest="kind", required=True)
    eval_pictures.add(kinds)
    eval_tables.add(kinds)
    eval_models.add(kinds)
