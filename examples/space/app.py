"""clipag studio as a Hugging Face Space, or on any machine that others reach."""

import sys

from clipag_plugins.cli import main

sys.exit(main(["studio", "--host", "0.0.0.0", "--port", "7860"]))
