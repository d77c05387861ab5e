"""clipag run: somebody's script, as it is."""

import argparse
from pathlib import Path

from .options import Commands, command

EXAMPLES = """\
examples:
  clipag run generate.py -p "a red apple" -i 100
  clipag run --device cpu train_CLIPstyler.py --text "a watercolor"    where there is no GPU
  clipag run --model CLIPAG_ViTB32.pt generate.py -p "a red apple"     the authors' weights
  clipag run --device cpu CLIP_Patch_Detection.ipynb                   a notebook's code cells
  clipag run --device cpu clipdraw.ipynb                CLIPDraw; pydiffvg is ours if there is none

clipag's options stand before SCRIPT; all that follows it is the script's own.
"""


def add(commands: Commands) -> None:
    """Describe `clipag run`."""
    run = command(
        commands, "run", "run a CLIP-guided script as it is, with CLIPAG for its CLIP", EXAMPLES
    )
    run.description = (
        "Run a script written for OpenAI's clip, unchanged: its `import clip` gets CLIPAG, and "
        "what has gone from its libraries since it was written is put back."
    )
    run.set_defaults(run=_run)
    run.add_argument(
        "--model",
        help="what every clip.load gets: a known model or a weights file (default: clipag-mini)",
    )
    run.add_argument("--device", choices=["cpu"], help="run on the CPU what asks for cuda")
    run.add_argument(
        "--pydiffvg", choices=["ours"], help="use our pydiffvg even where the real one is installed"
    )
    run.add_argument("script", type=Path, metavar="SCRIPT", help="a .py file or .ipynb notebook")
    run.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own arguments"
    )


def _run(options: argparse.Namespace) -> int:
    # Only here: the library imports no integration until it is asked for one.
    from ..integrations.shims.run import run_script

    code: int = run_script(
        options.script, options.arguments, options.model, options.device, options.pydiffvg
    )
    return code
