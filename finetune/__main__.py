"""For torchrun: `torchrun --nproc-per-node 8 -m clipag_plugins.finetune CONFIG …`."""

import sys

from clipag_plugins.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
