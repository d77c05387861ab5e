"""Write trained towers and their memories into the package, with checksums.

python -m clipag_plugins.finetune.embedded.export --work build/weights --out clipag_plugins/weights
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipag_plugins.files import write_beside
from clipag_plugins.finetune.embedded.concepts import build_concepts
from clipag_plugins.finetune.embedded.memory import build_memory
from clipag_plugins.finetune.embedded.recipe import FINE, FINE_SCALE, MINI, VQGAN
from clipag_plugins.lite import LiteTower
from clipag_plugins.quantization import quantize

IMAGE_TOWERS = {"clip-mini": "vanilla", "clipag-mini": "clipag"}
# The fine towers of the models of two scales, by the names that `robust_tower` gives them, and the
# models whose towers are the coarse ones.
FINE_TOWERS = {"clip-lite": ("plain", "clip-mini"), "clipag-lite": ("robust", "clipag-mini")}
HEAD = "head."  # was needed in training alone: the towers share that of their concepts


def export(work: Path, out: Path) -> None:
    """Write all embedded weights and their config.json to `out`.

    Both models share the text tower. Each has its own image tower and memory values. All is stored
    in 8 bits, except the VQGAN, which takes 2 MB in float16.
    """
    out.mkdir(parents=True, exist_ok=True)
    memory = build_memory(work, IMAGE_TOWERS)
    text = {**MINI["text_cfg"], "memory": len(memory["keys"])}
    config: dict[str, Any] = {"model_cfg": {**MINI, "text_cfg": text}, "models": {}}
    config["text"] = write_8_bit(
        load_file(work / "text.safetensors"), out / "text-mini.safetensors"
    )
    for name, kind in IMAGE_TOWERS.items():
        with safe_open(work / f"{kind}.safetensors", "pt") as file:
            scale = float(file.metadata()["logit_scale"])
        tower = load_file(work / f"{kind}.safetensors")
        image = write_8_bit(tower, out / f"{name}.safetensors")
        config["models"][name] = {"image": image, "logit_scale": scale}
    towers = {
        name: _fine_tower(work / f"{kind}.safetensors") for name, (kind, _) in FINE_TOWERS.items()
    }
    for name, tower in towers.items():
        state = {k: v for k, v in tower.state_dict().items() if not k.startswith(HEAD)}
        image, coarse = write_8_bit(state, out / f"{name}.safetensors"), FINE_TOWERS[name][1]
        config["models"][name] = {"image": image, "coarse": coarse, "logit_scale": FINE_SCALE}
    concepts = build_concepts(work, [*towers.values()])
    config["concepts"] = write_8_bit(concepts, out / "concepts-lite.safetensors")
    count = len(concepts["captions"]) + len(concepts["names"])
    config["fine_cfg"] = {**FINE, "text_cfg": {"concepts": count}}
    config["memory"] = write_8_bit(memory, out / "memory-mini.safetensors")
    config["gmm"] = write_8_bit(load_file(work / "gmm.safetensors"), out / "gmm.safetensors")
    vqgan = {k: v.half() for k, v in load_file(work / "vqgan.safetensors").items()}
    weights = _write(vqgan, out / "vqgan-mini.safetensors")
    config["vqgan"] = {"model_cfg": VQGAN, "weights": weights}
    with write_beside(out / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")


def _fine_tower(path: Path) -> LiteTower:
    tower = LiteTower(MINI["embed_dim"], FINE["vision_cfg"]["fine"])
    tower.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return tower.eval().to(memory_format=torch.channels_last)


def write_8_bit(state: dict[str, Tensor], target: Path) -> dict[str, str]:
    """Write weights in 8 bits, and return the file's entry in config.json: name and SHA-256."""
    return _write(quantize(state), target)


def _write(state: dict[str, Tensor], target: Path) -> dict[str, str]:
    with write_beside(target) as temporary:
        save_file({k: v.contiguous() for k, v in state.items()}, temporary)
    return {"name": target.name, "sha256": hashlib.sha256(target.read_bytes()).hexdigest()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("clipag_plugins/weights"))
    arguments = parser.parse_args()
    export(arguments.work, arguments.out)
