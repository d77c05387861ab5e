"""How fast adversarial fine-tuning is, beside a straightforward implementation.

    python -m benchmarks.finetune
    python -m benchmarks.finetune --memory --work build/weights

The peer, in the same run and on the same weights: open_clip's ViT-B/32 (or the mini towers) in
float32, torchattacks' PGDL2 on a module that gives the contrastive logits, weights that require
gradients throughout, one large batch, AdamW. It comes in three forms: `whole`, whose attack
runs `model(images, texts)` as CLIP's API suggests; `backward`, the same with a hand-written
PGD that calls `loss.backward()`, weight gradients and all; and `texts kept`, which embeds the
texts once a batch. Ours is timed on one large batch too, and in four micro-batches, for
which GradCache embeds most pictures once more. Times are CPU seconds of one thread, so that a
busy machine does not blur the ratios. `--processes` times two processes of one thread against
one of two, in wall time. torchattacks is what `make test` installs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.attack import L2
from clipag_plugins.base import ClipagModel, normalize
from clipag_plugins.finetune import config, train
from clipag_plugins.finetune.gradcache import Batch, Spool, Times, gradient
from clipag_plugins.finetune.objectives import Clipag
from clipag_plugins.targets import text_embeddings
from clipag_plugins.tokenizer import tokenize

from . import RESULTS, keep

ATTACK_STEPS, EPS = 5, 1.5
CAPTION = "a photo of thing number {} on a table"


def batch_of(size: int, side: int) -> tuple[Tensor, list[str]]:
    """Return random images (N, 3, side, side) uint8 and as many distinct captions."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)
    return images, [CAPTION.format(i) for i in range(size)]


def ours(name: str, size: int, micro_batches: int, times: Times) -> Callable[[], object]:
    """Return one update as this package does it, in so many micro-batches."""
    model = train.build(config.Config(model=name))
    side = model.visual.native_size
    images, captions = batch_of(size, side)
    tower = model.visual.requires_grad_(True)
    objective = Clipag(lambda texts: text_embeddings(model, texts), 50.0)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-6)
    spool = Spool(Path(tempfile.gettempdir()))
    threat = L2(EPS, ATTACK_STEPS, 2 * EPS / ATTACK_STEPS)
    micro = [*images.split(size // micro_batches)]

    def update() -> None:
        times.add("data")  # what the others took since the last time
        optimizer.zero_grad()
        gradient(tower, objective, threat, Batch(micro, captions, range(size), size), spool,
                 times=times)  # fmt: skip
        optimizer.step()
        times.add("update")

    return update


class Logits(nn.Module):
    """Images in [0, 1] to the contrastive logits, as torchattacks wants a model."""

    def __init__(self, model: Any, tokens: Tensor, keep_texts: bool):
        super().__init__()
        self.model: Any = model
        self.tokens = tokens
        self.texts = self._embed() if keep_texts else None

    def _embed(self) -> Tensor:
        with torch.no_grad():
            return F.normalize(self.model.encode_text(self.tokens), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, N) logits of images with the batch's texts."""
        z = F.normalize(self.model.encode_image(normalize(images)), dim=-1)
        texts = self.texts
        if texts is None:
            texts = F.normalize(self.model.encode_text(self.tokens), dim=-1)
        return 50 * z @ texts.T


def straightforward(name: str, size: int, kind: str) -> Callable[[], object]:
    """Return one update as one would first write it."""
    import open_clip
    import torchattacks

    model: nn.Module
    if name == "clip-mini":
        mini: ClipagModel = train.build(config.Config(model=name))
        model, side = mini, mini.visual.native_size
        model.to(memory_format=torch.contiguous_format)  # torchattacks takes no other
    else:
        model, side = open_clip.create_model(name), 224
    model.eval().requires_grad_(True)
    images, captions = batch_of(size, side)
    x, labels, tokens = images / 255, torch.arange(size), tokenize(captions)
    tower: nn.Module = model.visual  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-6)
    length = 2 * EPS / ATTACK_STEPS

    def update() -> None:
        logits = Logits(model, tokens, kind == "texts kept")
        if kind == "backward":
            threat = L2(EPS, ATTACK_STEPS, length)
            attacked = threat.random_start(x)
            for _ in range(ATTACK_STEPS):
                attacked.requires_grad_(True)
                F.cross_entropy(logits(attacked), labels).backward()
                slope = attacked.grad
                if slope is not None:  # for mypy: backward has just set it
                    attacked = threat.project(threat.step(attacked.detach(), slope), x)
        else:
            attack = torchattacks.PGDL2(logits, EPS, length, ATTACK_STEPS)
            attacked = attack(x, labels)
        optimizer.zero_grad()
        both = logits(attacked)
        (F.cross_entropy(both, labels) + F.cross_entropy(both.T, labels)).backward()
        optimizer.step()

    return update


def compare(name: str, size: int, rounds: int) -> dict[str, object]:
    """Time all forms in turn; return images per CPU second, the ratios, and our own split."""
    times = Times()
    kinds = ("whole", "backward", "texts kept")
    updates = {kind: straightforward(name, size, kind) for kind in kinds}
    updates["ours"] = ours(name, size, 1, times)
    updates["ours, 4 micro-batches"] = ours(name, size, 4, Times())
    spent = dict.fromkeys(updates, float("inf"))
    for turn in range(rounds + 1):
        for kind, update in updates.items():
            began = time.process_time()
            update()
            if turn or not rounds:  # the first warms up
                spent[kind] = min(spent[kind], time.process_time() - began)
            print(name, turn, kind, f"{time.process_time() - began:.2f} s", file=sys.stderr)
    speed = {kind: size / seconds for kind, seconds in spent.items()}
    split = {k: v for k, v in asdict(times).items() if k in ("attack", "update")}
    whole = sum(split.values())
    return {
        "batch": size,
        "images per CPU second": {k: round(v, 3) for k, v in speed.items()},
        "ours against": {
            our: {k: round(speed[our] / speed[k], 2) for k in kinds}
            for our in ("ours", "ours, 4 micro-batches")
        },
        "our split": {k: round(v / whole, 3) for k, v in split.items()},
    }


def processes(work: Path) -> dict[str, object]:
    """Time a mini run on two processes of one thread against one process of two threads."""
    settings = ["steps=6", "batch=128", "micro_batch=64", "save_every=6", "picture_every=0",
                f"data.0.path={work}", "evaluate_samples=8",
                f"validation.path={work}"]  # fmt: skip
    found: dict[str, object] = {"load": os.getloadavg()[0]}
    for count, threads in ((1, 2), (2, 1)):
        with tempfile.TemporaryDirectory() as folder:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            run = ["-m", "clipag_plugins.finetune", "mini", "--out", f"{folder}/run"]
            command = [sys.executable, *launch, *run, *(a for s in settings for a in ("--set", s))]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=environment)
            state = torch.load(f"{folder}/run/00000006.pt", weights_only=True)
            found[f"{count} × {threads}"] = round(6 * 128 / state["run"]["seconds"], 2)
    found["ratio"] = round(found["2 × 1"] / found["1 × 2"], 2)  # type: ignore[operator]
    return found


def memory(work: Path, batch: int) -> dict[str, object]:
    """Run one update of a batch on the mini model, and return this process' peak memory."""
    changes = [f"data.0.path={work}", "steps=1", f"batch={batch}", "micro_batch=512",
               "threat.attack_steps=1", "picture_every=0"]  # fmt: skip
    settings = replace(config.read("mini", changes), validation=config.Source())
    with tempfile.TemporaryDirectory(dir=work) as folder:
        train.train(settings, Path(folder), torch.device("cpu"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"micro_batch": 512, str(batch): round(peak, 1), "unit": "MB"}


def main() -> None:
    """Measure one thing, and keep the figures beside those of other runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--rounds", type=int, default=2, help="after one to warm up; 0: that one")
    parser.add_argument("--models", nargs="*", default=["clip-mini", "ViT-B-32"])
    parser.add_argument("--processes", action="store_true", help="two processes against one")
    parser.add_argument("--memory", type=int, nargs="?", const=40_960, help="one batch of so many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any]
    if options.memory:
        found = {"memory": memory(options.work, options.memory)}
    elif options.processes:
        found = {"processes": processes(options.work)}
    else:
        sizes = {"clip-mini": 64}
        found = {"threads": 1, "load": os.getloadavg()[0]}
        found |= {m: compare(m, sizes.get(m, 8), options.rounds) for m in options.models}
    before = RESULTS / "finetune.json"
    kept = json.loads(before.read_text()) if before.exists() else {}
    for key, value in found.items():
        kept[key] = {**kept.get(key, {}), **value} if isinstance(value, dict) else value
    keep("finetune", kept)


if __name__ == "__main__":
    main()
