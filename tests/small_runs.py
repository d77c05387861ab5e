"""A small data set, and small runs on it, for the tests of fine-tuning."""

import io
import json
import tarfile
from dataclasses import replace

import torch
from PIL import Image, ImageDraw

from clipag_plugins.finetune import config, settings

COLOURS = ("red", "green", "blue", "orange")
SHAPES = {"circle": "ellipse", "square": "rectangle"}
SIDE = 48
VIT = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2}  # a tower that trains fast


def drawings():
    """Thirty-two drawings with their captions, two of each: name, picture, caption."""
    triples = []
    for number in range(32):
        colour, shape = COLOURS[number % 4], [*SHAPES][number // 4 % 2]
        picture = Image.new("RGB", (64, 56), "white")
        draw = getattr(ImageDraw.Draw(picture), SHAPES[shape])
        draw((4 + number % 7, 6, 40 + number, 48), fill=colour)
        extra = "" if number < 16 else ("small ", "big ")[number // 8 % 2]
        triples.append((f"{number:05d}", picture, f"a {extra}{colour} {shape}"))
    return triples


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def add(tar, name, content):
    """Add a file to an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_shards(folder):
    """Write four shards as img2dataset does; the last one's captions are in the JSON alone."""
    for shard in range(4):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for name, picture, caption in drawings()[shard * 8 : shard * 8 + 8]:
                metadata = json.dumps({"caption": caption, "status": "success"})
                add(tar, f"{name}.json", metadata.encode())
                if shard < 3:
                    add(tar, f"{name}.txt", caption.encode())
                add(tar, f"{name}.png", png(picture))
    return folder


def small_run(shards, **changes):
    """Return the config of a small run on the shards."""
    source = settings.Source(kind="shards", path=f"{shards}/{{00000..00003}}.tar")
    base = config.Config(
        model="clip-mini", vision=VIT, data=[source], steps=4, batch=16, micro_batch=8, streams=4,
        lr=1e-3, precision="float32", ema=0.9, save_every=1,
        threat=settings.Threat(eps=0.5, attack_steps=1),
    )  # fmt: skip
    return replace(base, **changes)


def trained_tensors(checkpoint):
    """Return all that was trained: weights, average and moments."""
    states = checkpoint["optimizer"]["state"].values()
    moments = [value for state in states for value in state.values()]
    return [*checkpoint["tower"].values(), *checkpoint["average"].values(), *moments]


def assert_same_training(one, other):
    """All that was trained in two runs is equal, bit by bit."""
    for a, b in zip(trained_tensors(one), trained_tensors(other), strict=True):
        assert torch.equal(a, b)
