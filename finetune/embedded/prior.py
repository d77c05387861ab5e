"""Train the prior that comes with `clipag-mini`, and write it into the package, after `export`.

python -m clipag_plugins.finetune.embedded.prior --work build/weights --out clipag_plugins/weights

It knows the corpus' training pictures, but for one caption in twenty, on which it is measured. It
needs diffusers.
"""

import argparse
import hashlib
import json
from pathlib import Path

from clipag_plugins.errors import exit_on_user_error
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import prior
from clipag_plugins.finetune.settings import Source
from clipag_plugins.hub import load_model

MODEL = "clipag-mini"
FILE = "prior-mini.safetensors"
RECIPE = prior.Recipe(
    kind="diffusion",
    steps=1000,
    templates=("{}", "a {}", "a picture of {}"),
    text_length=8,
    width=128,
    layers=4,
    heads=4,
    components=64,
    save_every=100,
)


def make(work: Path, out: Path, run: Path) -> None:
    """Train the prior in the folder `run`, and add it to the embedded weights in `out`."""
    model = load_model(MODEL)
    pairs = prior.encode(Source("corpus", str(work)), model, run / "embeddings.safetensors")
    known, _ = prior.split(pairs)
    result = prior.train(known, model, RECIPE, run)
    content = result.read_bytes()
    with write_beside(out / FILE) as temporary:
        temporary.write_bytes(content)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(content).hexdigest()
    config["priors"] = {RECIPE.kind: {"name": FILE, "sha256": digest, "model": MODEL}}
    with write_beside(out / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("clipag_plugins/weights"))
    parser.add_argument("--run", type=Path, help="folder of the run (default: WORK/prior)")
    options = parser.parse_args()
    with exit_on_user_error():
        make(options.work, options.out, options.run or options.work / "prior")
