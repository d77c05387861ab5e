"""How fast a guide looks at an image, beside its peers: what `clipag bench` runs.

    python -m benchmarks.guidance                        # the table of README
    python -m benchmarks.guidance --models ViT-B-32 --views 8 32

Keeps its figures in benchmarks/results/guidance.json. clip-anytorch joins the peers where it is
installed (`pip install '.[test]'`).
"""

import sys

from clipag_plugins.cli import main

from . import RESULTS

if __name__ == "__main__":
    sys.exit(main(["bench", "--out", str(RESULTS / "guidance.json"), *sys.argv[1:]]))
