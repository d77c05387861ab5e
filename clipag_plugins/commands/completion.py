"""clipag completion: the Tab key completes commands, options and files."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..errors import library
from .options import Commands, command

SHELLS = ("bash", "zsh", "tcsh")
EXAMPLES = """\
examples:
  clipag completion bash > ~/.local/share/bash-completion/completions/clipag
  clipag completion zsh > ~/.zfunc/_clipag           with fpath=(~/.zfunc $fpath) in ~/.zshrc
  clipag completion tcsh > ~/.clipag.tcsh            with source ~/.clipag.tcsh in ~/.tcshrc

Needs pip install 'clipag-plugins[completion]'.
"""


def add(commands: Commands, root: argparse.ArgumentParser) -> None:
    """Describe `clipag completion`, which completes what `root` parses."""
    completion = command(
        commands, "completion", "print a script by which a shell completes commands", EXAMPLES
    )
    completion.set_defaults(run=lambda options: _run(options, root))
    completion.add_argument("shell", choices=SHELLS, help="the shell")


def _run(options: argparse.Namespace, root: argparse.ArgumentParser) -> int:
    shtab = library("shtab", "completion")
    for action in _actions(root):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab expects it
    print(shtab.complete(root, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
