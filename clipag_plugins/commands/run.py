"""`clipag run`: run an unmodified script with CLIPAG as its CLIP."""

import argparse
from pathlib import Path

from ..defaults import MODEL
from .options import Commands, command

EXAMPLES = """\
examples:
  clipag run generate.py -p "a red apple" -i 100
  clipag run --device cpu train_CLIPstyler.py --text "a watercolor"    where there is no GPU
  clipag run --model CLIPAG_ViTB32.pt generate.py -p "a red apple"     the authors' weights
  clipag run --device cpu CLIP_Patch_Detection.ipynb                   a notebook's code cells
  clipag run --device cpu clipdraw.ipynb                CLIPDraw, with our pydiffvg if there is none

Options of clipag go before SCRIPT; everything after it goes to the script.
"""


def add(commands: Commands) -> None:
    """Add `clipag run`."""
    run = command(
        commands, "run", "run an unmodified CLIP-guided script with CLIPAG as its CLIP", EXAMPLES
    )
    run.description = (
        "Run an unmodified script written for OpenAI's clip. Its `import clip` gives CLIPAG, and "
        "what newer versions of its libraries have removed is restored."
    )
    run.set_defaults(run=_run)
    run.add_argument(
        "--model",
        help="what every clip.load returns: a known model or a weights file (default: %(default)s)",
        default=MODEL,
    )
    run.add_argument("--device", choices=["cpu"], help="run code that asks for cuda on the CPU")
    run.add_argument(
        "--pydiffvg", choices=["ours"], help="use our pydiffvg even if another is installed"
    )
    run.add_argument("script", type=Path, metavar="SCRIPT", help="a .py file or .ipynb notebook")
    run.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own arguments"
    )


def _run(options: argparse.Namespace) -> int:
    # Imported late: the library loads an integration only when it is used.
    from ..integrations.shims.run import run_script

    code: int = run_script(
        options.script,
        options.arguments,
        options.model,
        options.device,
        options.pydiffvg,
        no_gpu_hint="run it with --device cpu, before the script's name",
    )
    return code
