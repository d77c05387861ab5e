import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.attack import L2, Linf
from clipag_plugins.base import normalize
from clipag_plugins.finetune import checkpoint, config, data, gradcache, objectives, sharding, train
from clipag_plugins.finetune.card import write_card
from clipag_plugins.finetune.embedded import corpus, memory
from clipag_plugins.finetune.embedded.image_tower import Pictures
from clipag_plugins.finetune.embedded.recipe import MINI
from clipag_plugins.finetune.embedded.text_tower import with_hypernyms
from clipag_plugins.mini import build_towers
from clipag_plugins.targets import text_embeddings

COLOURS = ("red", "green", "blue", "orange")
SHAPES = {"circle": "ellipse", "square": "rectangle"}
SIDE = 48
THREAT = {"l2": L2(0.5, 2, 0.4), "linf": Linf(4 / 255, 2, 3 / 255)}


def drawings():
    """Thirty-two drawings with their captions, two of each: name, picture, caption."""
    found = []
    for number in range(32):
        colour, shape = COLOURS[number % 4], [*SHAPES][number // 4 % 2]
        picture = Image.new("RGB", (64, 56), "white")
        draw = getattr(ImageDraw.Draw(picture), SHAPES[shape])
        draw((4 + number % 7, 6, 40 + number, 48), fill=colour)
        extra = "" if number < 16 else ("small ", "big ")[number // 8 % 2]
        found.append((f"{number:05d}", picture, f"a {extra}{colour} {shape}"))
    return found


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Four shards as img2dataset writes them; the captions of the last are in the json alone."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for name, picture, caption in drawings()[shard * 8 : shard * 8 + 8]:
                members = {"json": json.dumps({"caption": caption, "status": "success"}).encode()}
                if shard < 3:
                    members["txt"] = caption.encode()
                for extension, content in (members | {"png": png(picture)}).items():
                    info = tarfile.TarInfo(f"{name}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def settings(shards, **changes):
    """Return a small run on the shards."""
    source = config.Source(kind="shards", path=f"{shards}/{{00000..00003}}.tar")
    base = config.Config(
        model="clip-mini", data=[source], steps=4, batch=16, micro_batch=8, streams=4, lr=1e-3,
        precision="float32", ema=0.9, save_every=1, threat=config.Threat(eps=0.5, attack_steps=1),
    )  # fmt: skip
    return replace(base, **changes)


# ------------------------------------------------------------------ the gradient of a step


def start(shard):
    """Return the model to start from; FARE's small loss would feel another layout's rounding."""
    model = clip.load_model("clip-mini")
    return model.to(memory_format=torch.contiguous_format) if shard else model


def objective(kind, model, shard):
    def texts(captions):
        return text_embeddings(model, captions)

    if kind == "fare":
        return objectives.Fare(start(shard).visual)
    if kind == "tecoa":
        names = sorted({caption for *_, caption in drawings()})
        return objectives.Tecoa(texts, 50.0, names, "a photo of {}")
    return objectives.Clipag(texts, 50.0)


def whole_batch():
    some = drawings()[4:20]
    images = torch.stack([data.decode(picture, SIDE, 1.0, None) for _, picture, _ in some])
    return images, [caption for *_, caption in some]


def tower_off_its_start(shard):
    """Return a tower some way from its first weights, where FARE has no gradient."""
    model = start(shard)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))
    model.visual.requires_grad_(True)
    return model


@cache
def plain_gradient(kind, threat, clean_weight, shard=False):
    """The gradient as one would write it with memory for all: one batch, one graph."""
    model = tower_off_its_start(shard)
    images, captions = whole_batch()
    images = images.float() / 255
    names = sorted({caption for *_, caption in drawings()} if kind == "tecoa" else set(captions))
    template = "a photo of {}" if kind == "tecoa" else "{}"
    texts = text_embeddings(model, [template.format(name) for name in names])
    labels = torch.tensor([names.index(caption) for caption in captions])
    original = start(shard).encode_image(normalize(images))

    def matching(x):
        z = model.encode_image(normalize(x))
        if kind == "fare":
            return (z - original).square().sum()
        return F.cross_entropy(50 * F.normalize(z, dim=1) @ texts.T, labels, reduction="sum")

    def both(x):
        if kind != "clipag":
            return matching(x)
        z = F.normalize(model.encode_image(normalize(x)), dim=1)
        to_images = 50 * texts[labels] @ z.T
        same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
        to_images = to_images.masked_fill(same, -torch.inf)
        picking = F.cross_entropy(to_images, torch.arange(len(x)), reduction="sum")
        return 0.5 * (matching(x) + picking)

    starts = [
        threat.random_start(image, torch.Generator().manual_seed(1000 + i))
        for i, image in enumerate(images.split(1))
    ]
    attacked = torch.cat(starts)
    for _ in range(threat.steps):
        attacked.requires_grad_(True)
        (slope,) = torch.autograd.grad(matching(attacked), attacked)
        attacked = threat.project(threat.step(attacked.detach(), slope), images)
    loss = both(attacked) / len(images)
    if clean_weight:
        loss = loss + clean_weight * both(images) / len(images)
    loss.backward()
    return loss.item(), [p.grad for p in model.visual.parameters()]


def cached_gradient(kind, threat, clean_weight, micro, rank, processes, folder, shard=False):
    """The gradient as the package computes it, of one process' part of the batch."""
    model = tower_off_its_start(shard)
    images, captions = whole_batch()
    mine = [i for i in range(len(images)) if i % processes == rank]
    batch = gradcache.Batch(
        [images[mine[i : i + micro]] for i in range(0, len(mine), micro)],
        [captions[i] for i in mine],
        [1000 + i for i in mine],
        len(images),
    )
    tower = model.visual
    aim = objective(kind, model, shard)
    if shard:
        for each in (tower, *([aim.original] if kind == "fare" else [])):
            sharding.shard(each, torch.device("cpu"))
        shares = sum(p.to_local().numel() for p in tower.parameters())
        assert shares < 0.51 * sum(p.numel() for p in tower.parameters())
    elif processes > 1:
        tower = torch.nn.parallel.DistributedDataParallel(tower)
    loss = gradcache.gradient(
        tower, aim, threat, batch, gradcache.Spool(folder), clean_weight=clean_weight
    )
    found = [p.grad for p in model.visual.parameters()]
    return loss, [g.full_tensor() for g in found] if shard else found


def assert_same_gradient(one, other):
    """Both losses and all gradients agree to 1e-5 of the largest entry of each tensor."""
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for a, b in zip(one[1], other[1], strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


CASES = [
    (kind, norm, weight)
    for kind in ("clipag", "tecoa", "fare")
    for norm, weight in (("l2", 0.0), ("linf", 0.5))
]


@pytest.mark.parametrize(("kind", "norm", "clean_weight"), CASES)
def test_micro_batches_give_the_gradient_of_the_large_batch(kind, norm, clean_weight, tmp_path):
    expected = plain_gradient(kind, THREAT[norm], clean_weight)
    found = cached_gradient(kind, THREAT[norm], clean_weight, 4, 0, 1, tmp_path)
    assert_same_gradient(found, expected)


SHARED = [("clipag", "l2", 0.0), ("tecoa", "linf", 0.5), ("fare", "l2", 0.0)]


def _one_process(rank, folder, shards):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": str(rank)}
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=2
    )
    for shard in (False, True):
        found = [cached_gradient(k, THREAT[n], w, 4, rank, 2, folder, shard) for k, n, w in SHARED]
        if rank == 0:
            torch.save(found, folder / f"shard-{shard}.pt")
    cfg = short_run(shards, shard=True, checkpoint_activations=True)
    train.train(cfg, folder / "shared", torch.device("cpu"))
    if rank == 0:
        resume_at_two(folder, "shared", "resumed")
        (folder / "chosen").mkdir()
    torch.distributed.barrier()
    train.train(cfg, folder / "resumed", torch.device("cpu"))
    for shard in (False, True):
        train.train(vit_run(shards, shard=shard), folder / f"vit-{shard}", torch.device("cpu"))
    choose_a_checkpoint_together(rank, folder / "chosen")
    torch.distributed.destroy_process_group()


def choose_a_checkpoint_together(rank, folder):
    parts = {"tower": torch.nn.Linear(2, 2)}
    for step in (1, 2):
        checkpoint.save_in(folder, step, parts, keep=2)
    if rank == 0:
        (folder / "00000002.pt").write_bytes(b"half of it")
    torch.distributed.barrier()
    assert checkpoint.restore_last(folder, parts) == 1
    if rank == 0:
        assert checkpoint.restore_last(folder, parts) == 1
    else:
        with pytest.raises(clip.ClipagError, match="need the same --out"):
            checkpoint.restore_last(folder.parent / "elsewhere", parts)


def short_run(shards, **changes):
    return settings(shards, steps=3, micro_batch=4, picture_every=3, **changes)


def vit_run(shards, **changes):
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2}
    return settings(shards, steps=2, micro_batch=4, vision=vision, **changes)


def resume_at_two(folder, run, copy):
    (folder / copy).mkdir()
    shutil.copy(folder / run / "00000002.pt", folder / copy)


@pytest.fixture(scope="module")
def two_processes(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_one_process, (folder, shards), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("two_processes")  # one worker makes their fixture
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_give_the_gradient_of_the_large_batch(shard, two_processes):
    found = torch.load(two_processes / f"shard-{shard}.pt")
    for gradient, (kind, norm, clean_weight) in zip(found, SHARED, strict=True):
        assert_same_gradient(gradient, plain_gradient(kind, THREAT[norm], clean_weight, shard))


@pytest.mark.slow
@pytest.mark.xdist_group("two_processes")  # one worker makes their fixture
def test_a_sharded_run_goes_on_with_shares_or_alone(two_processes, shards):
    resume_at_two(two_processes, "shared", "alone")
    train.train(short_run(shards), two_processes / "alone", torch.device("cpu"))
    shared, resumed, alone = (
        torch.load(two_processes / name / "00000003.pt") for name in ("shared", "resumed", "alone")
    )
    assert shared["tower"].keys() == alone["tower"].keys()
    for found, bound in ((resumed, 0), (alone, 2e-4)):
        for a, b in zip(tensors(found), tensors(shared), strict=True):
            assert (a - b).abs().max() <= bound * b.abs().max()
    models = [clip.load_model(two_processes / name / "model") for name in ("shared", "resumed")]
    for a, b in zip(*(model.visual.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.xdist_group("two_processes")  # one worker makes their fixture
def test_two_processes_train_a_vit_with_copies_or_shares_as_one_does(two_processes, shards):
    train.train(vit_run(shards), two_processes / "vit-alone", torch.device("cpu"))
    alone, copies, shares = (
        torch.load(two_processes / f"vit-{name}" / "00000002.pt")
        for name in ("alone", "False", "True")
    )
    for found in (copies, shares):
        for a, b in zip(tensors(found), tensors(alone), strict=True):
            # Of matrices, and their mean: where a gradient is next to nothing, as that of a key's
            # bias, AdamW makes steps of its noise.
            if a.ndim > 1:
                assert (a - b).abs().mean() <= 1e-3 * b.abs().max()


def tensors(state):
    """Return all that was learnt: weights, average and moments."""
    moments = [value for each in state["optimizer"]["state"].values() for value in each.values()]
    return [*state["tower"].values(), *state["average"].values(), *moments]


# ------------------------------------------------------------------ the data


def take(cfg, rank, processes, micro_batches, folder, states=None):
    """Return the samples of a process' micro-batches by place: (step place, caption, picture)."""
    source = data.Data(cfg, SIDE, rank, processes, folder)
    if states:
        source.restore(states)
    found = {}
    for number in range(micro_batches):
        images, captions = source.take()
        for place, image, caption in zip(source.indices(number), images, captions, strict=True):
            found[place] = (caption, image.sum().item())
    return found, source.states


def test_the_order_does_not_depend_on_who_reads(shards, tmp_path):
    cfg = settings(shards)
    alone, _ = take(cfg, 0, 1, 6, tmp_path)
    halves = [take(cfg, rank, 2, 3, tmp_path)[0] for rank in (0, 1)]
    assert halves[0] | halves[1] == alone
    workers, _ = take(replace(cfg, workers=2), 0, 1, 6, tmp_path)
    assert workers == alone
    assert len({v for k, v in alone.items() if k < 32}) == 32  # an epoch shows each picture once


def test_reading_goes_on_from_a_position_on_another_number_of_processes(shards, tmp_path):
    cfg = settings(shards)
    whole, _ = take(cfg, 0, 1, 6, tmp_path)
    _, states = take(cfg, 0, 1, 2, tmp_path)
    rest = {}
    for rank in (0, 1):
        rest |= take(cfg, rank, 2, 2, tmp_path, states)[0]
    assert rest == {place - 16: whole[place] for place in range(16, 48)}


def test_bad_samples_and_a_broken_shard_are_counted_logged_and_skipped(shards, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for shard in sorted(shards.glob("*.tar")):
        (folder / shard.name).write_bytes(shard.read_bytes())
    whole = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(whole[: 15_360 + 700])  # dies midway
    with tarfile.open(folder / "00001.tar", "a") as tar:
        for name, content in (("x.png", b"no picture"), ("x.txt", b"a red circle"),
                              ("y.png", png(drawings()[0][1]))):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    cfg = replace(settings(shards), data=[config.Source(kind="shards", path=str(folder))])
    _, states = take(cfg, 0, 1, 8, tmp_path)
    log = (tmp_path / "skipped.tsv").read_text()
    assert sum(state[1] for state in states.values()) == len(log.splitlines()) >= 3
    assert "no caption" in log and "cannot identify image" in log and "breaks off" in log


def test_what_is_held_out_passes_over_bad_samples(tmp_path):
    _, picture, caption = drawings()[0]
    captions = [caption, caption, ["a list"], caption, caption]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number, words in enumerate(captions):
            content = b"no picture" if number == 1 else png(picture)
            for extension, member in (
                ("png", content),
                ("json", json.dumps({"caption": words}).encode()),
            ):
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    source = config.Source("shards", str(tmp_path / "0.tar"))
    for count, found in ((2, 2), (9, 3)):
        images, texts = data.held_out(source, SIDE, count)
        assert images.shape == (found, 3, SIDE, SIDE)
        assert texts == [caption] * found


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_to_read_is_one_sentence(workers, tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(8):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"broken")
    source = config.Source(kind="classes", path=str(tmp_path))
    cfg = config.Config(model="clip-mini", data=[source], streams=2, micro_batch=4, workers=workers)
    with pytest.raises(
        clip.ClipagError, match=r"^Nothing in .* can be read: .*skipped.tsv says why.$"
    ):
        data.Data(cfg, SIDE, 0, 1, tmp_path).take()


def test_tables_as_excel_writes_them(tmp_path):
    table = tmp_path / "t.csv"
    source = config.Source("table", str(table))
    table.write_text("image,caption\na.png,a café\n", encoding="utf-8-sig")
    assert next(data.open_source(source).read(0))[2] == "a café"
    for content in ("image,caption\na.png,a café\n".encode("latin-1"),
                    b"image,caption\na.png," + b"x" * 140_000):  # fmt: skip
        table.write_bytes(content)
        with pytest.raises(clip.ClipagError, match="cannot be read as a table"):
            data.open_source(source)


def test_a_class_is_called_what_its_pictures_are(tmp_path):
    (tmp_path / "_big_cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "_big_cat" / "a.png")
    source = config.Source("classes", str(tmp_path))
    assert data.class_names([source]) == data.held_out(source, 8, 1)[1] == ["big cat"]


def test_shards_are_found_at_home(shards, monkeypatch):
    monkeypatch.setenv("HOME", str(shards))
    assert len(data.open_source(config.Source("shards", "~/{00000..00003}.tar"))) == 4


def test_every_layout_is_read_and_mixed_by_weight(shards, tmp_path):
    pictures = tmp_path / "pictures"
    for name, picture, caption in drawings()[:12]:
        folder = pictures / caption.split()[1]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"file {caption}")
    found = [p.relative_to(tmp_path) for p in sorted(pictures.rglob("*.png"))]
    rows = [{"file": str(path), "words": "a table row"} for path in found]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{p},a csv row\n" for p in found))
    sources = [
        config.Source(kind="shards", path=str(shards), weight=2.0),
        config.Source(kind="files", path=str(pictures)),
        config.Source(kind="classes", path=str(pictures)),
        config.Source(kind="table", path=f"{tmp_path}/t.jsonl", image="file", caption="words"),
        config.Source(kind="table", path=f"{tmp_path}/t.csv"),
    ]
    found, _ = take(replace(settings(shards), data=sources), 0, 1, 75, tmp_path)
    texts = [caption for caption, _ in found.values()]
    counts = [
        sum(text.startswith("file ") for text in texts),
        sum(text in COLOURS for text in texts),
        texts.count("a table row"),
        texts.count("a csv row"),
    ]
    assert all(60 < count < 140 for count in counts)  # 100 each of 600, the shards 200
    assert 150 < len(texts) - sum(counts) < 250


# ------------------------------------------------------------------ configs


def test_the_configs_of_the_package_are_whole():
    for name in config.names().split(", "):
        config.read(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("learning_rate=1", "learning_rate is no setting"),
        ("threat.epss=1", "did you mean threat.eps"),
        ("steps=many", "steps is 'many', which is no int"),
        ("objective=tecao", "choose clipag, tecoa, fare"),
        ("threat.norm=l1", "choose linf, l2"),
        ("threat.step_size=-1", "0 or more"),
        ("clip=nan", "clip is nan"),
        ("lr=-1", "a number above 0"),
        ("betas=[0.9]", "two numbers"),
        ("data.7.path=x", "there is no 'data.7.path'"),
        ("steps", "KEY=VALUE"),
        ("batch=0", "batch is 0"),
        ("threat.eps=2/0", "threat.eps is '2/0', which is no float"),
        ("data.0.path=2024", "data.0.path is 2024, which is no str | list[str]"),
        ('data.0.path=["a", "b"]', "kind corpus takes one path"),
        ("data.0.weight=inf", "data.weight is inf"),
    ],
)
def test_a_mistaken_setting_is_one_sentence(change, words):
    with pytest.raises(clip.ClipagError) as error:
        config.read("mini", [change])
    assert words in str(error.value)


def test_a_number_may_be_a_fraction():
    assert config.read("mini", ["threat.eps=2/255"]).threat.eps == 2 / 255


def test_shares_are_not_compiled():
    with pytest.raises(clip.ClipagError, match="set one of them to false"):
        config.read("mini", ["shard=true", "compile=true"])


def test_classes_named_by_wordnet_ids_are_refused(tmp_path):
    for name in ("n01440764", "n01443537"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    with pytest.raises(clip.ClipagError, match="WordNet ids, as n01440764"):
        data.open_source(config.Source("classes", str(tmp_path)))


def test_a_batch_that_cannot_be_shared_out_is_refused():
    config.check_processes(config.read("mini"), 2)
    for changes in (["streams=3"], ["micro_batch=20"], ["batch=100"]):
        with pytest.raises(clip.ClipagError, match="multiple"):
            config.check_processes(config.read("mini", changes), 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("embedded.corpus", ["--work", "w"], "comes by npm, apt-get and dpkg-deb"),
        ("embedded.starts", ["--folder", "nowhere", "--out", "o"], "nowhere"),
    ],
)
def test_a_stage_that_cannot_be_run_says_so_in_one_sentence(module, arguments, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"clipag_plugins.finetune.{module}", *arguments],
        cwd=tmp_path, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("clipag: ") and words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_stage_that_fails_ends_make_weights_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "clipag_plugins.finetune.embedded", "--work", "w", "--out", "o"],
        cwd=tmp_path, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "o").exists()
    assert done.stderr.startswith("clipag: ") and len(done.stderr.splitlines()) == 1


# ------------------------------------------------------------------ the embedded models


@pytest.mark.parametrize(
    ("caption", "name", "unseen"),
    [
        ("fox", "fox", True),
        ("a fox and a hat", "1", True),
        ("tigers", "1", True),
        ("ostriches", "1", False),
        ("watches", "1", True),
        ("foxpouting", "1", True),  # another name: fox*
        ("optical disc icon", "1", True),
        ("bike", "1", True),
        ("simple", "food/fruit/grapes_simple.png", True),  # in the file's name alone
        ("simple", "grapes/fruit.png", False),
        ("cyclone", "1", False),  # "cycle" is another name of "bicycle", "cyclone" is not
        ("pencil", "pencil", False),  # nor is the pen in "pencil" one
        ("cardboard box", "1", False),
    ],
)
def test_a_concept_is_held_out_by_all_its_names(caption, name, unseen):
    split = corpus.split_of(caption, "openclipart", name, corpus.unseen_pattern())
    assert (split == "unseen") == unseen


def test_the_test_pictures_stay_those_of_the_first_split():
    """Who measures on them can compare with figures of before."""
    pattern = corpus.unseen_pattern()
    names = [f"{number}.png" for number in range(100)]
    test = [n for n in names if corpus.split_of("a kiwi", "noto", n, pattern) == "test"]
    assert test == ["1.png", "4.png", "16.png", "74.png", "76.png", "90.png", "98.png"]


def test_no_seen_caption_is_held_out():
    seen = corpus.read_concepts(corpus.SPLIT_FOLDER / "seen.txt")
    pattern = corpus.unseen_pattern()
    assert len(seen) == 100 and not [caption for caption in seen if pattern.search(caption)]


KINDS = {"apple": ["fruit"], "palm tree": ["tree"], "tree": ["plant"], "lady": ["woman"],
         "ox": ["bovine"], "photo": ["picture"], "glasses": ["instrument"]}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a red apple", "a red apple, fruit"),
        ("two Apples on a tree", "two Apples on a tree, fruit"),
        ("a photo of a tall palm tree", "a photo of a tall palm tree, tree"),
        ("a photo", "a photo, picture"),
        ("an ox and a lady", "an ox and a lady, bovine"),
        ("glasses", "glasses, instrument"),
        ("ladies", "ladies, woman"),
        ("a zyzzyva", "a zyzzyva"),
        ("", ""),
    ],
)
def test_a_text_is_told_what_its_head_is(text, told):
    assert with_hypernyms(text, KINDS) == told


def test_wordnet_knows_what_a_noun_is_a_kind_of(tmp_path):
    """In WordNet's own format, and in its first sense."""
    folder = tmp_path / "usr/share/wordnet"
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text(
        "  1 The licence\n"
        "00000001 03 n 02 thing 0 entity 0 000 | what is\n"
        "00000002 05 n 01 Animal 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | lives; moves\n"
        "00000003 05 n 01 sea_bat 0 001 @ 00000002 n 0000 | a fish\n"
        "00000004 06 n 01 bat 0 001 @ 00000001 n 0000 | a club\n"
    )
    (folder / "index.noun").write_text(
        "  1 The licence\n"
        "animal n 1 2 @ ~ 1 1 00000002\n"
        "bat n 2 1 @ 2 1 00000003 00000004\n"
        "entity n 1 0 1 0 00000001\n"
    )
    assert corpus.wordnet_hypernyms(tmp_path) == {
        "animal": ["thing"], "bat": ["animal", "thing"], "entity": []
    }  # fmt: skip
    assert corpus.wordnet_hypernyms(tmp_path, limit=1)["bat"] == ["animal"]
    assert corpus.wordnet_lemmas(tmp_path, "noun")["bat"] == ["a fish", "a club"]
    assert corpus.wordnet_lemmas(tmp_path, "noun")["animal"] == ["lives"]


# ------------------------------------------------------------------ runs


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "ViT-Z-99"},
        {"scratch": "nowhere"},
        {"data": [config.Source("table", "nowhere.csv")]},
        {"validation": config.Source("corpus", "nowhere")},
    ],
)
def test_a_refused_run_leaves_no_folder(changes, shards, tmp_path):
    with pytest.raises(clip.ClipagError):
        train.train(settings(shards, **changes), tmp_path / "run", torch.device("cpu"))
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_costs_no_older_checkpoint(tmp_path):
    parts = {"tower": torch.nn.Linear(300, 300)}
    checkpoint.save_in(tmp_path, 1, parts, keep=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            checkpoint.save_in(tmp_path, 2, parts, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001.pt"]
    assert checkpoint.restore_last(tmp_path, parts) == 1


def test_the_last_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tmp_path):
    tower = torch.nn.Linear(3, 3)
    for step in (1, 2, 3):
        with torch.no_grad():
            tower.weight.fill_(step)
        checkpoint.save_in(tmp_path, step, {"tower": tower}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002.pt", "00000003.pt"]
    (tmp_path / "00000003.pt").write_bytes(b"half of it")
    assert checkpoint.restore_last(tmp_path, {"tower": tower}) == 2
    assert (tower.weight == 2).all()
    checkpoint.save_in(tmp_path, 2, {"tower": tower}, keep=1)  # the damaged one does not outrank it
    assert checkpoint.restore_last(tmp_path, {"tower": tower}) == 2


TOML = """
model = "clip-mini"
steps = 6
batch = 8
micro_batch = 4
streams = 4
lr = 1e-3
ema = 0.9
save_every = 1
precision = "float32"
picture_every = 6
evaluate_samples = 8
[threat]
eps = 0.5
attack_steps = 1
[[data]]
kind = "shards"
path = "SHARDS/{00000..00003}.tar"
[validation]
kind = "shards"
path = "SHARDS/00000.tar"
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_never_stopped(shards, tmp_path, run_process):
    (tmp_path / "run.toml").write_text(TOML.replace("SHARDS", str(shards)))
    cfg = config.read(str(tmp_path / "run.toml"))
    result = train.train(cfg, tmp_path / "whole", torch.device("cpu"))

    command = [sys.executable, "-m", "clipag_plugins", "finetune", "run.toml", "--out", "killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not [*tmp_path.glob("killed/*.pt")] and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    *_, last = sorted(tmp_path.glob("killed/*.pt"))
    assert not (tmp_path / "killed" / "model").exists()
    done = run_process("finetune", "run.toml", "--out", "killed")
    assert done.returncode == 0, done.stderr
    assert re.search(r"(\d+)/6 \[", done.stderr)[1] == str(int(last.stem))  # not from the start
    assert done.stdout.strip() == "killed/model"
    whole, killed = (clip.load_model(tmp_path / name / "model") for name in ("whole", "killed"))
    start = clip.load_model("clip-mini").visual.state_dict()
    for (name, a), b in zip(
        whole.visual.state_dict().items(), killed.visual.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
        assert not torch.equal(a, start[name]), name
    card = (result / "README.md").read_text()
    for fact in ("L2, eps 0.5", "clip-mini", "6 updates of 8", "| after |", "hours"):
        assert fact in card
    assert (tmp_path / "whole" / "pictures" / "00000006.png").is_file()
    with pytest.raises(clip.ClipagError, match="another threat"):
        other = replace(cfg, threat=config.Threat(eps=1.0))
        train.train(other, tmp_path / "whole", torch.device("cpu"))


@pytest.mark.slow
def test_a_stopped_run_saves_its_last_update(shards, tmp_path):
    changes = {"steps = 6": "steps = 10000", "save_every = 1": "save_every = 10000\nworkers = 2",
               "picture_every = 6": "evaluate_every = 1"}  # fmt: skip
    text = TOML.replace("SHARDS", str(shards))
    for before, after in changes.items():
        text = text.replace(before, after)
    (tmp_path / "run.toml").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-m", "clipag_plugins", "finetune", "run.toml"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        shown = ""
        while not re.search(r" ([2-9]|\d\d+)/10000 ", shown) and process.poll() is None:
            shown += process.stderr.read(1)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does, and torchrun
        said, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, shown + rest
    assert said == "clipag: interrupted; the same command continues from run.\n"
    assert "Traceback" not in rest
    (saved,) = (tmp_path / "run").glob("*.pt")
    assert int(saved.stem) >= 3
    model = clip.load_model(tmp_path / "run" / "model")  # that of the last evaluation
    assert model.visual.native_size == SIDE
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "updates of 8 pictures, of 10000 in all" in card and "| after |" in card


def test_classes_are_told_apart_in_the_template(tmp_path):
    for folder in ("_big_cat", "dog", "owl"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    model = clip.load_model("clip-mini")
    cfg = config.Config(
        validation=config.Source("classes", str(tmp_path)), evaluate_samples=1, template="my {}!"
    )
    images, labels, texts = train.held_out(cfg, model, SIDE)
    assert images.shape[0] == labels.shape[0] == 1
    names = ["my big cat!", "my dog!", "my owl!"]
    assert torch.equal(texts, text_embeddings(model, names))


def test_a_card_names_the_repository_that_was_started_from(tmp_path):
    model = clip.load_model("clip-mini")
    for start, named in (("vanilla:RN50", "timm/resnet50_clip.openai"), ("a/b", "a/b"),
                         ("clip-mini", None)):  # fmt: skip
        model.save_pretrained(tmp_path)
        write_card(tmp_path, config.Config(model=start), model, 1, 1.0, "a CPU", 0, None, None)
        head = (tmp_path / "README.md").read_text().split("---")[1]
        assert ("base_model" in head) == (named is not None)
        assert named is None or f"base_model: {named}\n" in head


def test_a_gradient_that_is_not_finite_is_not_stepped(shards, tmp_path):
    model = clip.load_model("clip-mini")
    with torch.no_grad():
        model.logit_scale.fill_(65.0)  # a finite loss, whose squared slopes overflow
    model.save_pretrained(tmp_path / "steep")
    cfg = settings(shards, model=str(tmp_path / "steep"))
    with pytest.raises(clip.ClipagError, match=r"loss of step 1 is \d.*norm inf.*another --out"):
        train.train(cfg, tmp_path / "run", torch.device("cpu"))
    assert not [*(tmp_path / "run").glob("*.pt")]


def test_a_resumed_run_keeps_its_precision(shards, tmp_path):
    for name, precision in (("whole", "bfloat16"), ("resumed", "auto")):
        if name == "resumed":
            (tmp_path / name).mkdir()
            shutil.copy(tmp_path / "whole" / "00000001.pt", tmp_path / name)
        cfg = settings(shards, steps=2, batch=8, precision=precision)
        train.train(cfg, tmp_path / name, torch.device("cpu"))
    whole, resumed = (torch.load(tmp_path / n / "00000002.pt") for n in ("whole", "resumed"))
    for a, b in zip(tensors(whole), tensors(resumed), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_tower_of_another_shape_is_trained_and_loads_again(shards, tmp_path):
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2}
    # A name of the package's lends no licence and no threat model.
    for name, keep in (("clipag-mini", False), ("twice", True)):
        cfg = settings(shards, steps=2, vision=vision, checkpoint_activations=keep)
        train.train(cfg, tmp_path / name, torch.device("cpu"))
    kept, twice = (clip.load_model(tmp_path / name / "model") for name in ("clipag-mini", "twice"))
    assert "licence" not in (tmp_path / "clipag-mini" / "model" / "README.md").read_text()
    assert kept.visual.native_size == 32
    for a, b in zip(kept.visual.parameters(), twice.visual.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # one update is 1e-3


@pytest.mark.slow
def test_an_architecture_of_open_clip_is_built(tmp_path):
    model = train.build(config.Config(model="RN50-quickgelu"))
    assert model.visual.native_size == 224
    assert model.encode_image(torch.zeros(1, 3, 224, 224)).shape == (1, 1024)
    with pytest.raises(clip.ClipagError, match="no model"):
        train.build(config.Config(model="ViT-Z-99"))


def test_a_memory_is_filled_from_the_training_pictures(tmp_path):
    split_of = {"pear": "train", "apple": "train", "plum": "test", "fox": "unseen"}
    captions = ["pear", "apple", "plum", "fox", "pear"]
    rows = [corpus.Picture(i, c, "", "", "", split_of[c]) for i, c in enumerate(captions)]
    (tmp_path / "captions.json").write_text(json.dumps([asdict(row) for row in rows]))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 4), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pixels)
    for name, tower in zip(("tower", "text"), build_towers(MINI), strict=True):
        save_file(tower.state_dict(), tmp_path / f"{name}.safetensors")
    found = memory.fill(tmp_path, {"mine": "tower"})

    tower, text = (t.eval() for t in build_towers(MINI))
    tower.load_state_dict(load_file(tmp_path / "tower.safetensors"))
    text.load_state_dict(load_file(tmp_path / "text.safetensors"))
    with torch.no_grad():
        keys = F.normalize(text(clip.tokenize(["apple", "pear"])), dim=1)
        small = Pictures(torch.from_numpy(pixels), 48).plain(torch.tensor([1, 0, 4]))
        apple, *pears = F.normalize(tower(normalize(small)), dim=1)
    means = torch.stack([apple, sum(pears) / 2])
    torch.testing.assert_close(found["keys"], keys)
    torch.testing.assert_close(found["mine"], means - means.mean(dim=0))
