"""`clipag models`, `clipag pull` and `clipag convert`: weights and where they come from."""

import argparse
from pathlib import Path

from ..defaults import VQGAN
from ..errors import ClipagError
from ..files import require_writable_folder
from .options import Commands, command, need_target

MODELS_EXAMPLES = """\
examples:
  clipag models                            names, sizes, and what is already downloaded
  clipag models ViT-B/32                   the origin of one, its licence, what to cite
"""
PULL_EXAMPLES = """\
examples:
  clipag pull ViT-B/32                     the authors' CLIPAG
  clipag pull FARE4-ViT-B/16               another robust CLIP
  clipag pull laion/CLIP-ViT-B-32-laion2B-s34B-b79K       any OpenCLIP repository on the Hub
"""
CONVERT_EXAMPLES = """\
examples:
  clipag convert CLIPAG_ViTB32.pt          writes CLIPAG_ViTB32.safetensors
  clipag convert ViT-B-32.pt --out openai.safetensors     also reads OpenAI's TorchScript files
  clipag convert tower.pt --text-from vanilla:ViT-L/14    adds the text tower to an image tower
"""


def add(commands: Commands) -> None:
    """Add `clipag models`, `clipag pull` and `clipag convert`."""
    models = command(commands, "models", "list the known models", MODELS_EXAMPLES)
    models.set_defaults(run=_models)
    models.add_argument("name", nargs="?", metavar="NAME", help="show all about this model")
    pull = command(commands, "pull", "download a model's weights", PULL_EXAMPLES)
    pull.set_defaults(run=_pull)
    pull.add_argument("name", metavar="NAME", help="a known model, or OWNER/NAME on the Hub")
    convert = command(commands, "convert", "rewrite a checkpoint as .safetensors", CONVERT_EXAMPLES)
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "file", type=Path, metavar="FILE.pt", help="the checkpoint; its code is not run"
    )
    convert.add_argument(
        "--out",
        type=Path,
        metavar="FILE.safetensors",
        help="where to write (default: FILE.safetensors)",
    )
    convert.add_argument(
        "--text-from",
        metavar="MODEL",
        help="for an image tower alone: the model it comes from, whose text tower is added",
    )


def _models(options: argparse.Namespace) -> int:
    from .. import hub, registry
    from ..integrations.vqgan import weights

    if options.name is None:
        width = max(map(len, registry.MODELS))
        for name, source in registry.MODELS.items():
            place = "embedded" if source.embedded else "cached" if hub.is_cached(name) else ""
            print(f"{name:{width}}  {source.megabytes:5} MB  {source.threat_model:14}  {place}")
        print(f"{VQGAN:{width}}  {'':8}  {'VQGAN':14}  embedded")
        for name, address in weights.VQGANS.items():
            place = "cached" if weights.is_cached(name) else ""
            size = f"{address.megabytes:5} MB" if address.megabytes else ""
            print(f"{name:{width}}  {size:8}  {'VQGAN':14}  {place}")
        return 0
    if options.name not in registry.MODELS:
        raise ClipagError(
            f"There is no model {options.name!r}; choose from {', '.join(registry.MODELS)}."
        )
    source = registry.MODELS[options.name]
    for field in ("place", "address", "architecture", "threat_model", "licence", "citation"):
        print(f"{field.replace('_', ' ')}: {getattr(source, field)}")
    return 0


def _pull(options: argparse.Namespace) -> int:
    from .. import hub
    from ..integrations.vqgan import weights

    pull = weights.pull_vqgan if options.name in weights.VQGANS else hub.pull
    print(pull(options.name))
    return 0


def _convert(options: argparse.Namespace) -> int:
    out = options.file.with_suffix(".safetensors") if options.out is None else options.out
    if not options.file.is_file():
        raise ClipagError(f"There is no file {options.file}: name a checkpoint.")
    if out.suffix != ".safetensors":
        raise ClipagError(
            f"--out {out} does not end in .safetensors, the only format that is written."
        )
    require_writable_folder(out.parent)
    need_target(out, [options.file])

    from .. import publish

    publish.convert(options.file, out, options.text_from)
    print(out)
    return 0
