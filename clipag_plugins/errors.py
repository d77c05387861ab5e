"""The one error that users cause and can mend."""


class ClipagError(ValueError):
    """Bad input. The message is one sentence that names the value and the remedy.

    The command line prints it without a traceback and exits with 2.
    """
