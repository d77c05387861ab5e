"""`python tests/fuzz`: see `run`. torch-fidelity installs a package that is called tests too."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)

if __name__ == "__main__":
    from fuzz.run import main

    sys.exit(main())
