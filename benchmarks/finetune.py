"""How fast adversarial fine-tuning is, beside a straightforward implementation.

    python -m benchmarks.finetune
    python -m benchmarks.finetune --bfloat16 --models ViT-B-32
    python -m benchmarks.finetune --memory --work build/weights

The peer runs in the same process on the same weights: open_clip's ViT-B/32 (or the mini towers) in
float32, torchattacks' PGDL2 on a module that returns the contrastive logits, weights that require
gradients throughout, one large batch, AdamW. It has three forms. `whole` attacks
`model(images, texts)`, as CLIP's interface suggests. `backward` does the same with a hand-written
PGD that calls `loss.backward()` and so computes the weights' gradients too. `texts kept` embeds the
texts once a batch. Ours is timed on one large batch too, and in four micro-batches, for
which GradCache embeds most pictures once more. Times are CPU seconds of one thread, so that a
busy machine does not blur the ratios. `--bfloat16` times ours in bfloat16, and beside it the peer
in float32 and, by autocast, in bfloat16. `--processes` times two processes of one thread against
one of two, in wall time. `make test` installs torchattacks.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.attack import L2
from clipag_plugins.base import ClipagModel, normalize
from clipag_plugins.finetune import config, train
from clipag_plugins.finetune.gradcache import Batch, Spool, Times, gradient
from clipag_plugins.finetune.objectives import Clipag, Temperature
from clipag_plugins.finetune.settings import Config, Source
from clipag_plugins.targets import text_embeddings
from clipag_plugins.tokenizer import tokenize

from . import RESULTS, keep

ATTACK_STEPS, EPS = 5, 1.5
SCALE = 50.0
CAPTION = "a photo of thing number {} on a table"


@dataclass(frozen=True)
class Setting:
    """How updates are computed.

    Attributes:
        device: where.
        dtype: what the towers compute in, by autocast; None is float32.
        attack_steps: of PGD.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None
    attack_steps: int = ATTACK_STEPS

    @property
    def step_size(self) -> float:
        """Length of a step of the attack."""
        return 2 * EPS / self.attack_steps

    def autocast(self) -> torch.autocast:
        """Return the context in which a tower computes."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


def batch_of(size: int, side: int) -> tuple[Tensor, list[str]]:
    """Return random images (N, 3, side, side) uint8 and as many distinct captions."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)
    return images, [CAPTION.format(i) for i in range(size)]


def ours(
    name: str,
    size: int,
    micro_batches: int,
    times: Times,
    setting: Setting = Setting(),
    folder: Path | None = None,
) -> Callable[[], object]:
    """Return one update as this package does it, in a number of micro-batches."""
    run = Config(model=name, lr=1e-6)
    model = train.build(run).to(setting.device)
    side = model.visual.native_size
    images, captions = batch_of(size, side)
    tower = model.visual.requires_grad_(True)
    temperature = Temperature(SCALE).to(setting.device)
    objective = Clipag(lambda texts: text_embeddings(model, texts), temperature)
    optimizer = train.optimizer_of(run, tower, temperature)
    spool = Spool(folder or Path(tempfile.gettempdir()))
    threat = L2(EPS, setting.attack_steps, setting.step_size)
    micro = [*images.split(size // micro_batches)]

    def update() -> None:
        times.add("data")  # the time since our last update, in which others ran
        optimizer.zero_grad()
        gradient(tower, objective, threat, Batch(micro, captions, range(size), size), spool,
                 dtype=setting.dtype, times=times)  # fmt: skip
        optimizer.step()
        times.add("update")

    return update


class Logits(nn.Module):
    """A model as torchattacks takes it: images in [0, 1] to the contrastive logits."""

    def __init__(self, model: Any, tokens: Tensor, keep_texts: bool, setting: Setting = Setting()):
        super().__init__()
        self.autocast = setting.autocast
        self.model: Any = model
        self.tokens = tokens
        self.texts = self._embed() if keep_texts else None

    def _embed(self) -> Tensor:
        with torch.no_grad(), self.autocast():
            return F.normalize(self.model.encode_text(self.tokens).float(), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, N) logits of images with the batch's texts."""
        with self.autocast():
            embeddings = self.model.encode_image(normalize(images))
            texts = self.model.encode_text(self.tokens) if self.texts is None else self.texts
        z = F.normalize(embeddings.float(), dim=-1)
        texts = F.normalize(texts.float(), dim=-1)
        return SCALE * z @ texts.T


def straightforward(
    name: str, size: int, kind: str, setting: Setting = Setting()
) -> Callable[[], object]:
    """Return one update as one would write it without this package, in one of the three forms."""
    import open_clip
    import torchattacks

    device = setting.device
    model: nn.Module
    if name == "clip-mini":
        mini: ClipagModel = train.build(Config(model=name))
        model, side = mini, mini.visual.native_size
        model.to(memory_format=torch.contiguous_format)  # torchattacks takes no other
    else:
        with torch.device(device):
            model, side = open_clip.create_model(name, device=device), 224
    model.to(device).eval().requires_grad_(True)
    images, captions = batch_of(size, side)
    labels, tokens = torch.arange(size, device=device), tokenize(captions).to(device)
    tower: nn.Module = model.visual  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-6)
    threat = L2(EPS, setting.attack_steps, setting.step_size)

    def update() -> None:
        x = images.to(device) / 255
        logits = Logits(model, tokens, kind == "texts kept", setting)
        if kind == "backward":
            attacked = threat.random_start(x)
            for _ in range(threat.steps):
                attacked.requires_grad_(True)
                F.cross_entropy(logits(attacked), labels).backward()
                gradient_of_images = attacked.grad
                if gradient_of_images is not None:  # for mypy: backward has just set it
                    moved = threat.step(attacked.detach(), gradient_of_images)
                    attacked = threat.project(moved, x)
        else:
            attack = torchattacks.PGDL2(logits, EPS, threat.step_size, threat.steps)
            attacked = attack(x, labels)
        optimizer.zero_grad()
        both = logits(attacked)
        (F.cross_entropy(both, labels) + F.cross_entropy(both.T, labels)).backward()
        optimizer.step()

    return update


def compare(name: str, size: int, rounds: int) -> dict[str, object]:
    """Time all forms in turn; return images a CPU second, their ratios, and how ours is spent."""
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


def compare_in_bfloat16(name: str, size: int, rounds: int) -> dict[str, object]:
    """Time ours in bfloat16, and the peer in both precisions, in turn."""
    low = Setting(dtype=torch.bfloat16)
    updates = {
        "whole, float32": straightforward(name, size, "whole"),
        "whole, bfloat16": straightforward(name, size, "whole", low),
        "texts kept, bfloat16": straightforward(name, size, "texts kept", low),
        "ours, bfloat16": ours(name, size, 1, Times(), low),
    }
    spent = dict.fromkeys(updates, float("inf"))
    for turn in range(rounds):
        for kind, update in updates.items():
            began = time.process_time()
            update()
            spent[kind] = min(spent[kind], time.process_time() - began)
            print(name, turn, kind, f"{time.process_time() - began:.2f} s", file=sys.stderr)
    return {
        "batch": size,
        "rounds": rounds,
        "images per CPU second": {k: round(size / seconds, 3) for k, seconds in spent.items()},
        "ours against": {
            k: round(seconds / spent["ours, bfloat16"], 2)
            for k, seconds in spent.items()
            if k != "ours, bfloat16"
        },
    }


def processes(work: Path) -> dict[str, object]:
    """Time a mini run on two processes of one thread against one process of two threads."""
    settings = ["steps=6", "batch=128", "micro_batch=64", "save_every=6", "picture_every=0",
                f"data.0.path={work}", "evaluate_samples=8",
                f"validation.path={work}"]  # fmt: skip
    speeds: dict[str, object] = {"load": os.getloadavg()[0]}
    for count, threads in ((1, 2), (2, 1)):
        with tempfile.TemporaryDirectory() as folder:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            run = ["-m", "clipag_plugins.finetune", "mini", "--out", f"{folder}/run"]
            command = [sys.executable, *launch, *run, *(a for s in settings for a in ("--set", s))]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=environment)
            state = torch.load(f"{folder}/run/00000006.pt", weights_only=True)
            speeds[f"{count} × {threads}"] = round(6 * 128 / state["progress"]["seconds"], 2)
    speeds["ratio"] = round(speeds["2 × 1"] / speeds["1 × 2"], 2)  # type: ignore[operator]
    return speeds


def memory(work: Path, batch: int) -> dict[str, object]:
    """Run one update of the mini model, and return this process's peak memory."""
    changes = [f"data.0.path={work}", "steps=1", f"batch={batch}", "micro_batch=512",
               "threat.attack_steps=1", "picture_every=0"]  # fmt: skip
    settings = replace(config.read("mini", changes), validation=Source())
    with tempfile.TemporaryDirectory(dir=work) as folder:
        train.train(settings, Path(folder), torch.device("cpu"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"micro_batch": 512, str(batch): round(peak, 1), "unit": "MB"}


def main() -> None:
    """Measure what the options name, and add the figures to those of other runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--rounds", type=int, default=2, help="after one to warm up; 0: that one")
    parser.add_argument("--models", nargs="*", default=["clip-mini", "ViT-B-32"])
    parser.add_argument("--bfloat16", action="store_true", help="ours in bfloat16")
    parser.add_argument("--processes", action="store_true", help="two processes against one")
    parser.add_argument(
        "--memory", type=int, nargs="?", const=40_960, help="of a batch of this size"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any]
    sizes = {"clip-mini": 64}
    if options.memory:
        figures = {"memory": memory(options.work, options.memory)}
    elif options.bfloat16:
        figures = {
            model: {
                "load": os.getloadavg()[0],
                **compare_in_bfloat16(model, sizes.get(model, 8), max(1, options.rounds)),
            }
            for model in options.models
        }
    elif options.processes:
        figures = {"processes": processes(options.work)}
    else:
        figures = {"threads": 1, "load": os.getloadavg()[0]}
        figures |= {m: compare(m, sizes.get(m, 8), options.rounds) for m in options.models}
    name = "finetune_bfloat16" if options.bfloat16 else "finetune"
    path = RESULTS / f"{name}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for key, value in figures.items():
        together = isinstance(value, dict)
        results[key] = {**results.get(key, {}), **value} if together else value
    keep(name, results)


if __name__ == "__main__":
    main()
