"""The gradient of an update, against one large batch in one graph, in float64.

In float64 rounding leaves 10 digits and more, so equality does not depend on a processor's kernels.
"""

import copy
import os
import shutil
from functools import cache

import pytest
import torch
from small_runs import (
    SIDE,
    VIT,
    assert_same_training,
    drawings,
    small_run,
    trained_tensors,
    write_shards,
)
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.attack import L2, Linf
from clipag_plugins.base import normalize
from clipag_plugins.finetune import checkpoint, gradcache, objectives, processes, sharding, train
from clipag_plugins.finetune.dreams import DreamingClipag
from clipag_plugins.finetune.settings import Config, Dreams
from clipag_plugins.finetune.sources import decode
from clipag_plugins.targets import text_embeddings

CPU = torch.device("cpu")
THREATS = {"l2": L2(0.5, 2, 0.4), "linf": Linf(4 / 255, 2, 3 / 255)}
NAMES = sorted({caption for *_, caption in drawings()})
MICRO, SHARE = 4, 0.5  # pictures of a micro-batch, and dreams for each picture
TOLERANCE = 1e-9  # relative, of float64


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@cache
def start(tower):
    """Return the model to start from, in float64: with the package's own tower, or a small ViT."""
    vision = VIT if tower == "vit" else {}
    return train.build(Config(model="clip-mini", vision=vision)).double()


def off_its_start(tower):
    """Return a model some way from its first weights, where FARE has no gradient."""
    model = copy.deepcopy(start(tower))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            spread = parameter.std() if parameter.numel() > 1 else 1.0
            parameter.add_(0.02 * spread * torch.randn_like(parameter))
    model.visual.requires_grad_(True)
    return model


class FlippedDreams(DreamingClipag):
    """Dreams that do not depend on the micro-batch: its first pictures, upside down."""

    def extra_images(self, embed, images, places, generator):
        return images[: self.dreams.count(len(images))].flip(2)


def objective_of(kind, tower, temperature):
    def encode(captions):
        return text_embeddings(start(tower), captions)

    if kind == "fare":
        return objectives.Fare(copy.deepcopy(start(tower).visual))
    if kind == "tecoa":
        return objectives.Tecoa(encode, temperature, NAMES, "a photo of {}")
    if kind == "clipag+dreams":
        aim = FlippedDreams(encode, temperature, NAMES)
        aim.dreams = Dreams(share=SHARE)
        return aim
    return objectives.Clipag(encode, temperature)


def temperature_of(learnt):
    return objectives.Temperature(50.0, learnt=learnt).double()


def whole_batch(tower):
    side = VIT["image_size"] if tower == "vit" else SIDE
    triples = drawings()[4:20]
    images = torch.stack([decode(picture, side, 1.0, None) for _, picture, _ in triples])
    return images, [caption for *_, caption in triples]


@cache
def plain_gradient(kind, norm, clean_weight, tower, count=1):
    """The gradient as one would write it with unlimited memory: one batch, one graph.

    `count` processes share the batch, which says which places dream: the first of each micro-batch.
    """
    dreamt = [place for place in range(16) if place // count % MICRO < SHARE * MICRO]
    model, threat = off_its_start(tower), THREATS[norm]
    temperature = temperature_of(kind == "clipag+dreams")
    scale = temperature.logit_scale.exp()
    images, captions = whole_batch(tower)
    images = images.double() / 255
    names = sorted(set(captions)) if kind == "clipag" else NAMES
    template = "a photo of {}" if kind == "tecoa" else "{}"
    texts = text_embeddings(model, [template.format(name) for name in names])
    labels = torch.tensor([names.index(caption) for caption in captions])
    original = start(tower).encode_image(normalize(images))

    def matching(x):
        z = model.encode_image(normalize(x))
        if kind == "fare":
            return (z - original).square().sum()
        logits = scale * F.normalize(z, dim=1) @ texts.T
        return F.cross_entropy(logits, labels, reduction="sum")

    def loss_of(x, dreams):
        if not kind.startswith("clipag"):
            return matching(x)
        z = F.normalize(model.encode_image(normalize(torch.cat([x, *dreams]))), dim=1)
        to_images = scale * texts[labels] @ z.T
        same = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
        to_pictures = to_images[:, : len(x)].masked_fill(same, -torch.inf)
        to_images = torch.cat([to_pictures, to_images[:, len(x) :]], dim=1)
        picking = F.cross_entropy(to_images, torch.arange(len(x)), reduction="sum")
        if kind == "clipag":
            return 0.5 * (matching(x) + picking)
        if not dreams:
            return matching(x) + 0.5 * picking
        own = torch.tensor(dreamt)
        pairs = to_images[own, own] - to_images[own, len(x) + torch.arange(len(own))]
        return matching(x) + 0.5 * picking + 0.5 * F.softplus(-pairs).mean() * len(x)

    starts = [
        threat.random_start(image, torch.Generator().manual_seed(1000 + i))
        for i, image in enumerate(images.split(1))
    ]
    attacked = torch.cat(starts)
    for _ in range(threat.steps):
        attacked.requires_grad_(True)
        (slope,) = torch.autograd.grad(matching(attacked), attacked)
        attacked = threat.project(threat.step(attacked.detach(), slope), images)
    dreams = [images[dreamt].flip(2)] if kind == "clipag+dreams" else []
    loss = loss_of(attacked, dreams) / len(images)
    if clean_weight:
        loss = loss + clean_weight * loss_of(images, []) / len(images)
    loss.backward()
    return loss.item(), gradients(model, temperature)


def gradients(model, temperature):
    parameters = [*model.visual.parameters(), temperature.logit_scale]
    return [p.grad for p in parameters if p.requires_grad]


def cached_gradient(kind, norm, clean_weight, tower, folder, shard=False):
    """The gradient as the package computes it, of this process's part of the batch."""
    model, temperature = off_its_start(tower), temperature_of(kind == "clipag+dreams")
    images, captions = whole_batch(tower)
    places = range(processes.rank(), len(images), processes.count())
    batch = gradcache.Batch(
        [images[list(places[i : i + MICRO])] for i in range(0, len(places), MICRO)],
        [captions[i] for i in places],
        [1000 + i for i in places],
        len(images),
    )
    aim = objective_of(kind, tower, temperature)
    layout = sharding.Sharded() if shard else sharding.Replicated()
    layout.distribute([model.visual, *aim.frozen_towers], CPU)
    if shard:
        part = sum(p.to_local().numel() for p in model.visual.parameters())
        assert part < 0.51 * sum(p.numel() for p in model.visual.parameters())
    loss = gradcache.gradient(
        layout.called_tower(model.visual), aim, THREATS[norm], batch, gradcache.Spool(folder),
        clean_weight=clean_weight,
    )  # fmt: skip
    temperature.average_gradient()
    computed = gradients(model, temperature)
    return loss, [g.full_tensor() for g in computed] if shard else computed


def assert_same_gradient(one, other):
    """Both losses and all gradients agree, relative to the largest entry of each tensor."""
    assert one[0] == pytest.approx(other[0], rel=TOLERANCE)
    for a, b in zip(one[1], other[1], strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= TOLERANCE * b.abs().max()


CASES = [
    (kind, norm, clean_weight)
    for kind in ("clipag", "clipag+dreams", "tecoa", "fare")
    for norm, clean_weight in (("l2", 0.0), ("linf", 0.5))
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "norm", "clean_weight"), CASES)
def test_micro_batches_give_the_gradient_of_the_large_batch(kind, norm, clean_weight, tmp_path):
    expected = plain_gradient(kind, norm, clean_weight, "own")
    assert_same_gradient(cached_gradient(kind, norm, clean_weight, "own", tmp_path), expected)


@pytest.mark.parametrize(("kind", "norm", "clean_weight"), CASES)
def test_the_same_of_a_vit(kind, norm, clean_weight, tmp_path):
    expected = plain_gradient(kind, norm, clean_weight, "vit")
    assert_same_gradient(cached_gradient(kind, norm, clean_weight, "vit", tmp_path), expected)


def test_a_dream_ascends_from_another_picture(vanilla, tmp_path):
    def encode(captions):
        return text_embeddings(vanilla, captions)

    images, captions = whole_batch("own")
    aim = DreamingClipag(encode, objectives.Temperature(50.0))
    aim.dreams = Dreams(share=0.25, steps=4)
    aim.begin(captions, 1)

    def cosines(x):
        z = F.normalize(vanilla.encode_image(normalize(x)), dim=1)
        return (z * encode(captions)[: len(x)]).sum(dim=1)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return aim.extra_images(
            lambda x: vanilla.encode_image(normalize(x)), images / 255, slice(0, 16), generator
        )

    dreams = draw(0)
    assert dreams.shape == (4, 3, SIDE, SIDE)
    assert dreams.min() >= 0 and dreams.max() <= 1
    assert torch.equal(dreams, draw(0)) and not torch.equal(dreams, draw(1))
    assert (cosines(dreams) > cosines(images[1:5] / 255)).all()  # of the pictures they began with


# ------------------------------------------------------------------ two processes

SHARED = [
    ("clipag", "l2", 0.0), ("clipag+dreams", "linf", 0.5), ("tecoa", "linf", 0.5),
    ("fare", "l2", 0.0),
]  # fmt: skip
# FSDP2 shards the tower's own parameters alone, so a learnt temperature is refused with it.
SHARDED = [case for case in SHARED if case[0] != "clipag+dreams"]


def run_one_of_two(rank, folder, shards):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": str(rank)}
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=2
    )
    for shard, cases in ((False, SHARED), (True, SHARDED)):
        computed = [cached_gradient(*case, "vit", folder, shard) for case in cases]
        if rank == 0:
            torch.save(computed, folder / f"gradients-{shard}.pt")
    run = short_run(shards, shard=True, checkpoint_activations=True)
    train.train(run, folder / "sharded", CPU)
    if rank == 0:
        copy_second_checkpoint(folder, "sharded", "resumed")
        (folder / "chosen").mkdir()
    processes.wait()
    train.train(run, folder / "resumed", CPU)
    train.train(short_run(shards, learn_scale=True), folder / "copied", CPU)
    choose_a_checkpoint_together(rank, folder / "chosen")
    torch.distributed.destroy_process_group()


def choose_a_checkpoint_together(rank, folder):
    parts = {"tower": torch.nn.Linear(2, 2)}
    for step in (1, 2):
        checkpoint.save_in(folder, step, parts, keep=2)
    if rank == 0:
        (folder / "00000002.pt").write_bytes(b"half of it")
    processes.wait()
    assert checkpoint.restore_last(folder, parts) == 1
    if rank == 0:
        assert checkpoint.restore_last(folder, parts) == 1
    else:
        with pytest.raises(clip.ClipagError, match="need the same `out`"):
            checkpoint.restore_last(folder.parent / "elsewhere", parts)


def short_run(shards, **changes):
    return small_run(shards, steps=3, micro_batch=4, picture_every=3, **changes)


def copy_second_checkpoint(folder, run, name):
    (folder / name).mkdir()
    shutil.copy(folder / run / "00000002.pt", folder / name)


@pytest.fixture(scope="module")
def two_processes(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(run_one_of_two, (folder, shards), nprocs=2)
    return folder


pytestmark = pytest.mark.xdist_group("finetune_gradient")  # the fixture is made once


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_give_the_gradient_of_the_large_batch(shard, two_processes):
    computed = torch.load(two_processes / f"gradients-{shard}.pt")
    for gradient, case in zip(computed, SHARDED if shard else SHARED, strict=True):
        assert_same_gradient(gradient, plain_gradient(*case, "vit", count=2))


@pytest.mark.slow
def test_a_sharded_run_resumes_sharded_or_alone(two_processes, shards):
    copy_second_checkpoint(two_processes, "sharded", "alone")
    train.train(short_run(shards), two_processes / "alone", CPU)
    sharded, resumed, alone = last_checkpoints(two_processes, "sharded", "resumed", "alone")
    assert_same_training(sharded, resumed)
    assert sharded["tower"].keys() == alone["tower"].keys()
    assert_close_training(sharded, alone)
    models = [clip.load_model(two_processes / name / "model") for name in ("sharded", "resumed")]
    for a, b in zip(*(model.visual.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_two_processes_train_as_one_does(two_processes, shards):
    train.train(short_run(shards, learn_scale=True), two_processes / "one", CPU)
    one, copied = last_checkpoints(two_processes, "one", "copied")
    assert_close_training(one, copied)
    scales = [state["temperature"]["logit_scale"] for state in (one, copied)]
    assert scales[0] != clip.load_model("clip-mini").logit_scale
    torch.testing.assert_close(*scales)


def last_checkpoints(folder, *names):
    return [torch.load(folder / name / "00000003.pt") for name in names]


def assert_close_training(one, other):
    """What was trained in float32 agrees, but for rounding.

    AdamW divides a gradient by its own size, so where a gradient is as small as its rounding error
    (about 1e-7 of the largest), a step's direction is noise: there, weights differ by up to an
    update, 1e-3. Such entries are few, so the mean difference of a matrix stays far below that.
    """
    for a, b in zip(trained_tensors(one), trained_tensors(other), strict=True):
        if a.ndim > 1:
            assert (a - b).abs().mean() <= 1e-3 * b.abs().max()


def test_the_gradient_in_bfloat16_points_where_that_in_float32_does(tmp_path):
    images, captions = whole_batch("vit")
    computed = []
    for dtype in (None, torch.bfloat16):
        model = off_its_start("vit").float()
        aim = objectives.Clipag(
            lambda texts, model=model: text_embeddings(model, texts), objectives.Temperature(50.0)
        )
        seeds = range(len(images))
        batch = gradcache.Batch([*images.split(MICRO)], captions, seeds, len(images))
        spool = gradcache.Spool(tmp_path)
        gradcache.gradient(model.visual, aim, THREATS["l2"], batch, spool, dtype=dtype)
        computed.append(torch.cat([p.grad.flatten() for p in model.visual.parameters()]))
    assert torch.cosine_similarity(*computed, dim=0) > 0.99
