"""How fast adversarial fine-tuning is on a GPU, beside open_clip and torchattacks."""

import tempfile
from pathlib import Path

import torch

from clipag_plugins.finetune.gradcache import Times

from ..finetune import Setting, ours, straightforward
from .meter import Meter, Run
from .speed import Figures

ATTACK_STEPS = 3


def training(meter: Meter) -> Figures:
    """Time updates under attack in bfloat16; return images a second by implementation."""
    name, size = ("ViT-S-32-alt", 2) if meter.quick else ("ViT-B-32", 256)
    setting = Setting(meter.device, torch.bfloat16 if meter.is_cuda else None, ATTACK_STEPS)
    figures: Figures = {"model": name, "batch": size, "attack steps": ATTACK_STEPS}
    times = Times()
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs["ours"] = ours(name, size, 1, times, setting, Path(folder))
        if not meter.quick:
            runs["ours, 2 micro-batches"] = ours(name, size, 2, Times(), setting, Path(folder))
        for kind in ("texts kept",) if meter.quick else ("whole", "backward", "texts kept"):
            try:
                runs[kind] = straightforward(name, size, kind, setting)
            except Exception as error:
                figures[kind] = repr(error)[:300]
        peaks: Figures = {}
        for kind in list(runs):
            try:
                peaks[kind] = meter.peak_megabytes(runs[kind])
                meter.once(runs[kind])
            except Exception as error:
                figures[kind] = repr(error)[:300]
                del runs[kind]
        seconds = meter.medians(runs, 5)
    figures["images a second"] = {kind: round(size / s, 2) for kind, s in seconds.items()}
    peers = {kind: s for kind, s in seconds.items() if not kind.startswith("ours")}
    if "ours" in seconds and peers:
        figures["ours against"] = {k: round(s / seconds["ours"], 3) for k, s in peers.items()}
    figures["peak memory, MB"] = peaks
    figures["our split, s"] = {"attack": times.attack, "update": times.update}
    return figures
