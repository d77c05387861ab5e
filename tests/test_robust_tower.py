"""EfficientNet-Lite, impressions, and robust training for a given time."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from clipag_plugins.base import CLIP_MEAN, CLIP_STD
from clipag_plugins.finetune.embedded.impressions import (
    Drawing,
    Impressions,
    normalised,
    render,
    upsampling,
)
from clipag_plugins.finetune.embedded.pack import Pack, Texts, encode, load_trunk, save_trunk
from clipag_plugins.finetune.embedded.statistics import Recorder, batch_distance, total
from clipag_plugins.lite import FEATURES, LiteTower, NormedConv
from clipag_plugins.quantization import quantize

CAPTIONS = ["red", "green", "blue", "grey"]
CPU = torch.device("cpu")


def random_trunk(seed):
    """A random trunk whose statistics are those of noise, so that no signal dies out on its way."""
    torch.manual_seed(seed)
    tower = LiteTower(384, "lite0").eval()

    def normalise(layer, _, output):
        layer.mean.copy_(output.mean((0, 2, 3)))
        layer.variance.copy_(output.var((0, 2, 3)))
        return (output - layer.mean[:, None, None]) / layer.variance.sqrt()[:, None, None]

    hooks = [
        m.register_forward_hook(normalise) for m in tower.modules() if isinstance(m, NormedConv)
    ]
    with torch.no_grad():
        tower(torch.randn(8, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return tower, nn.Linear(FEATURES, 1000)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """What `pack` writes, of 16 discs in 4 colours, one of them held out, and random trunks."""
    folder = tmp_path_factory.mktemp("pack")
    row, column = np.mgrid[:32, :32] - 15.5
    disc = (row**2 + column**2 < 100) * 255
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (99, 99, 99))
    pixels = [[np.full((32, 32), c) for c in colours[i % 4]] + [disc] for i in range(16)]
    data, lengths = encode(np.array(pixels, dtype=np.uint8).transpose(0, 2, 3, 1))
    np.savez(folder / "corpus.npz", data=data, lengths=lengths)
    texts = {"captions": torch.randn(4, 384), "names": torch.randn(1001, 384)}
    save_file(quantize(texts), folder / "texts.safetensors")
    lists = {
        "captions": CAPTIONS,
        "caption_of": [i % 4 for i in range(16)],
        "splits": ["unseen" if i % 4 == 3 else "train" if i < 12 else "test" for i in range(16)],
        "names": [["tench", "Tinca tinca"], *([f"class {i}"] for i in range(1, 1000))],
    }
    (folder / "lists.json").write_text(json.dumps(lists))
    for seed, (variant, bits) in enumerate({"lite0": 16, "lite1": 8}.items()):
        torch.manual_seed(seed)
        trunk = LiteTower(384, variant), nn.Linear(FEATURES, 1000)
        save_trunk(*trunk, folder / f"{variant}.safetensors", bits)
    return folder


@pytest.mark.parametrize("variant", ["lite0", "lite2", "lite4"])
def test_the_tower_computes_what_timms_does(variant):
    torch.manual_seed(0)
    theirs = timm.create_model(f"tf_efficientnet_{variant}", num_classes=0).double().eval()
    ours = LiteTower(8, variant).double().eval()
    convolutions = [m for m in theirs.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    layers = [m for m in ours.modules() if isinstance(m, NormedConv)]
    with torch.no_grad():
        for layer, convolution, norm in zip(layers, convolutions, norms, strict=True):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            layer.weight.copy_(convolution.weight)
            layer.gain.copy_(norm.weight)
            layer.bias.copy_(norm.bias)
            layer.mean.copy_(norm.running_mean)
            layer.variance.copy_(norm.running_var)
        images = torch.rand(2, 3, 65, 65, dtype=torch.float64)
        mean, std = (torch.tensor(v).double()[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
        features = ours.features((images - mean) / std)
        assert torch.allclose(features, theirs((images - 0.5) / 0.5), atol=1e-9)
        assert features.std() > 1e-3


def test_a_trunk_survives_its_file(tmp_path):
    tower, classifier = random_trunk(0)
    image = torch.randn(1, 3, 64, 64)
    for bits, close in ((16, 0.999), (8, 0.9)):
        save_trunk(tower, classifier, tmp_path / "trunk.safetensors", bits)
        copied, copied_classifier = load_trunk(tmp_path / "trunk.safetensors", "lite0", 384)
        with torch.no_grad():
            before = classifier(tower.features(image))
            after = copied_classifier(copied.features(image))
        assert torch.cosine_similarity(before, after) > close


def test_a_batch_with_the_fixed_statistics_is_at_a_distance_of_zero():
    layer = NormedConv(1, 2, 1)
    with torch.no_grad():
        layer.gain.copy_(torch.tensor([2.0, 0.5]))
        layer.bias.copy_(torch.tensor([1.0, -1.0]))
    outputs = torch.randn(4, 2, 8, 8)
    outputs = (outputs - outputs.mean((0, 2, 3), keepdim=True)) / outputs.std(
        (0, 2, 3), keepdim=True, unbiased=False
    )
    outputs = outputs * layer.gain[:, None, None] + layer.bias[:, None, None]
    assert batch_distance(layer, outputs) < 1e-6
    assert batch_distance(layer, outputs + 1) > 0.1
    assert batch_distance(layer, outputs * 2) > 0.1


def test_an_impression_comes_nearer_to_the_statistics():
    tower, classifier = random_trunk(1)
    trunk = (tower.requires_grad_(False), classifier.requires_grad_(False))
    settings = Impressions(side=32, steps=20, prior=1.0, at_once=2, classes=2)
    classes = torch.tensor([3, 700])

    def distance(images):
        recorder = Recorder(tower, batch_distance)
        with torch.no_grad(), recorder.recording() as distances:
            tower.features(normalised(images))
        return total(distances).item()

    drawing = Drawing([trunk], settings, torch.Generator().manual_seed(0))
    images = drawing.draw(classes)
    assert images.shape == (2, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    start = Drawing([trunk], replace(settings, steps=1), torch.Generator().manual_seed(0))
    assert distance(images) < 0.9 * distance(start.draw(classes))
    drawing.generator.manual_seed(0)
    assert torch.equal(drawing.draw(classes), images)  # the optimiser starts anew


def test_layers_are_enlarged_as_by_interpolate():
    layers = [torch.randn(2, 3, side, side) for side in (2, 8, 16)]
    maps = [upsampling(side, 16, CPU) for side in (2, 8, 16)]
    enlarged = [nn.functional.interpolate(layer, size=16, mode="bicubic") for layer in layers]
    expected = torch.sigmoid(2 * (enlarged[0] + enlarged[1] + layers[2]))
    assert torch.allclose(render(layers, maps), expected, atol=1e-5)


def test_the_statistics_are_recorded_layer_by_layer():
    tower, _ = random_trunk(2)
    recorder = Recorder(tower, batch_distance)
    with recorder.recording() as distances:
        tower(torch.randn(2, 3, 32, 32))
    assert len(distances) == len(recorder.layers) == 49
    tower(torch.randn(2, 3, 32, 32))
    assert len(distances) == 49  # nothing is recorded outside the block


def test_captions_without_a_training_picture_are_no_texts(pack):
    texts = Texts(Pack(pack, CPU))
    assert texts.of_caption.tolist() == [0, 1, 2, -1]
    assert len(texts.embeddings) == 3 + 1001
    classes = torch.tensor([0, 0, 1])
    names = texts.of_class(classes, torch.tensor([0.0, 0.99, 0.5]))
    assert names.tolist() == [3, 4, 5] and texts.class_of[names].tolist() == [0, 0, 1]


@pytest.mark.slow
def test_the_command_trains_a_tower_in_its_minutes(pack, tmp_path):
    out = tmp_path / "robust"
    command = [
        sys.executable, "-m", "clipag_plugins.finetune.embedded.robust_tower",
        "--pack", pack, "--out", out, "--device", "cpu", "--minutes", "0.05", "--side", "32",
        "--batch", "8", "--head-steps", "3",
        "--head-pictures", "8", "--drawing-side", "32", "--drawing-steps", "2",
        "--drawing-classes", "4", "--drawing-at-once", "2", "--drawing-rounds", "1",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["done"] == 1 and entries[-1]["step"] >= 1
    assert all(math.isfinite(value) for entry in entries for value in entry.values())
    plain, robust = (load_file(out / f"{name}.safetensors") for name in ("plain", "robust"))
    LiteTower(384, "lite0").load_state_dict({k: v.float() for k, v in robust.items()})
    assert not torch.equal(plain["head.weight"], robust["head.weight"])
    with safe_open(out / "robust.safetensors", "pt") as file:
        assert float(file.metadata()["logit_scale"]) > 0
    assert sum(path.stat().st_size for path in out.iterdir()) < 2 * 16 * 2**20
    drawn = (out / "impressions0.npz").stat().st_mtime_ns
    subprocess.run([*command, "--start", out / "robust.safetensors"], check=True, timeout=300)
    assert (out / "impressions0.npz").stat().st_mtime_ns == drawn  # a second run goes on from it
    assert len((out / "log.jsonl").read_text().splitlines()) == 2 * len(entries)
    # A run goes on from what a killed one left, and repeats neither the head nor nine tenths.
    made = (out / "plain.safetensors").stat().st_mtime_ns
    save_file(robust, out / "unfinished.safetensors", {"logit_scale": "3", "done": "0.9"})
    subprocess.run(command, check=True, timeout=300)
    assert (out / "plain.safetensors").stat().st_mtime_ns == made
    assert not (out / "unfinished.safetensors").exists()
