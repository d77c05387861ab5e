"""Run the command line as `python -m clipag_plugins`."""

import sys

from .cli import main

sys.exit(main())
