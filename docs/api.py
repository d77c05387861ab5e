"""Write the API reference, from the docstrings: `make api`."""

import sys
from pathlib import Path

import pdoc

import clipag_plugins

# What scripts import. Commands have their --help.
MODULES = [
    "arguments",
    "ascent",
    "attack",
    "base",
    "canvas",
    "errors",
    "evaluation",
    "explain",
    "guide",
    "hub",
    "inversion",
    "masks",
    "multiscale",
    "pag",
    "pictures",
    "sampler",
    "sheet",
    "smoothing",
    "targets",
    "tokenizer",
    "trajectory",
    "views",
    "integrations.clipdraw",
    "integrations.clipstyler",
    "integrations.pydiffvg",
    "integrations.strokes",
    "integrations.vector",
    "integrations.vqgan",
    "finetune.config",
    "finetune.train",
]


def write(folder: Path) -> None:
    """Write a page for each module, and an index."""
    for name in clipag_plugins.__all__:
        # pdoc does not see what is imported only when it is used.
        setattr(clipag_plugins, name, getattr(clipag_plugins, name))
    pdoc.render.configure(docformat="google")
    names = (f"clipag_plugins.{name}" for name in MODULES)
    pdoc.pdoc("clipag_plugins", *names, output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
