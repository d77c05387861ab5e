"""Messages of the library in the words of the command line."""

import argparse
import re


def as_options(message: str, options: argparse.Namespace) -> str:
    """Replace the argument names that a library message has in backticks by the command's options.

    Where an option is not named after its argument, the command gives the name by
    `set_defaults(option_names={"steps": "--iterations"})`.
    """
    option_names = {name: f"--{name.replace('_', '-')}" for name in vars(options)}
    option_names |= getattr(options, "option_names", {})
    return re.sub(r"`(\w+)`", lambda match: option_names.get(match[1], match[1]), message)
