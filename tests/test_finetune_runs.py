import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from small_runs import SIDE, VIT, assert_same_training, small_run, write_shards

import clipag_plugins as clip
from clipag_plugins.finetune import checkpoint, config, report, train
from clipag_plugins.finetune.card import write_card
from clipag_plugins.finetune.settings import Config, Source, Threat
from clipag_plugins.targets import text_embeddings


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "ViT-Z-99"},
        {"scratch": "nowhere"},
        {"data": [Source("table", "nowhere.csv")]},
        {"validation": Source("corpus", "nowhere")},
    ],
)
def test_a_refused_run_leaves_no_folder(changes, shards, tmp_path):
    with pytest.raises(clip.ClipagError):
        train.train(small_run(shards, **changes), tmp_path / "run", torch.device("cpu"))
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
vision = { image_size = 32, patch_size = 16, width = 64, layers = 2 }
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
    assert re.search(r"(\d+)/6 \[", done.stderr)[1] == str(int(last.stem))  # not from 0
    assert done.stdout.strip() == "killed/model"
    whole, killed = (clip.load_model(tmp_path / name / "model") for name in ("whole", "killed"))
    start = train.build(cfg).visual.state_dict()
    for (name, a), b in zip(
        whole.visual.state_dict().items(), killed.visual.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
        assert not torch.equal(a, start[name]), name
    card = (result / "README.md").read_text()
    for words in ("L2, eps 0.5", "clip-mini", "6 updates of 8", "| after |", "hours"):
        assert words in card
    assert (tmp_path / "whole" / "pictures" / "00000006.png").is_file()
    with pytest.raises(clip.ClipagError, match="another threat"):
        other = replace(cfg, threat=Threat(eps=1.0))
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
        printed, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, shown + rest
    assert printed == "clipag: interrupted; the same command continues from run.\n"
    assert "Traceback" not in rest
    (saved,) = (tmp_path / "run").glob("*.pt")
    assert int(saved.stem) >= 3
    model = clip.load_model(tmp_path / "run" / "model")  # that of the last evaluation
    assert model.visual.native_size == VIT["image_size"]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "updates of 8 pictures, of 10000 in all" in card and "| after |" in card


def test_classes_are_told_apart_in_the_template(tmp_path):
    for folder in ("_big_cat", "dog", "owl"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    model = clip.load_model("clip-mini")
    cfg = Config(validation=Source("classes", str(tmp_path)), evaluate_samples=1, template="my {}!")
    images, labels, texts = report.held_out(cfg, model, SIDE)
    assert images.shape[0] == labels.shape[0] == 1
    names = ["my big cat!", "my dog!", "my owl!"]
    assert torch.equal(texts, text_embeddings(model, names))


def test_a_card_names_the_repository_that_was_started_from(tmp_path):
    model = clip.load_model("clip-mini")
    for start, repository in (("vanilla:RN50", "timm/resnet50_clip.openai"), ("a/b", "a/b"),
                         ("clip-mini", None)):  # fmt: skip
        model.save_pretrained(tmp_path)
        write_card(tmp_path, Config(model=start), model, 1, 1.0, "a CPU", 0, None, None)
        head = (tmp_path / "README.md").read_text().split("---")[1]
        assert ("base_model" in head) == (repository is not None)
        assert repository is None or f"base_model: {repository}\n" in head


def test_a_gradient_that_is_not_finite_is_not_stepped(shards, tmp_path):
    model = clip.load_model("clip-mini")
    with torch.no_grad():
        model.logit_scale.fill_(65.0)  # a finite loss, whose squared slopes overflow
    model.save_pretrained(tmp_path / "steep")
    cfg = small_run(shards, model=str(tmp_path / "steep"), vision={})
    with pytest.raises(clip.ClipagError, match=r"loss of step 1 is \d.*norm inf.*another `out`"):
        train.train(cfg, tmp_path / "run", torch.device("cpu"))
    assert not [*(tmp_path / "run").glob("*.pt")]


def test_a_resumed_run_keeps_its_precision(shards, tmp_path):
    for name, precision in (("whole", "bfloat16"), ("resumed", "auto")):
        if name == "resumed":
            (tmp_path / name).mkdir()
            shutil.copy(tmp_path / "whole" / "00000001.pt", tmp_path / name)
        cfg = small_run(shards, steps=2, batch=8, precision=precision)
        train.train(cfg, tmp_path / name, torch.device("cpu"))
    whole, resumed = (torch.load(tmp_path / n / "00000002.pt") for n in ("whole", "resumed"))
    assert_same_training(whole, resumed)


@pytest.mark.slow
def test_a_tower_of_another_shape_is_trained_and_loads_again(shards, tmp_path):
    # A name of the package's lends no licence and no threat model.
    for name, recompute in (("clipag-mini", False), ("twice", True)):
        cfg = small_run(shards, steps=2, checkpoint_activations=recompute)
        train.train(cfg, tmp_path / name, torch.device("cpu"))
    stored, twice = (
        clip.load_model(tmp_path / name / "model") for name in ("clipag-mini", "twice")
    )
    assert "licence" not in (tmp_path / "clipag-mini" / "model" / "README.md").read_text()
    assert stored.visual.native_size == 32
    for a, b in zip(stored.visual.parameters(), twice.visual.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # one update is 1e-3


@pytest.mark.slow
def test_an_architecture_of_open_clip_is_built(tmp_path):
    model = train.build(Config(model="RN50-quickgelu"))
    assert model.visual.native_size == 224
    assert model.encode_image(torch.zeros(1, 3, 224, 224)).shape == (1, 1024)
    with pytest.raises(clip.ClipagError, match="no model"):
        train.build(Config(model="ViT-Z-99"))


def test_dreams_stages_and_a_learnt_temperature_resume_exactly(shards, tmp_path):
    stages = [
        replace(small_run(shards), steps=2, lr=1e-3),
        replace(small_run(shards), steps=2, side=48, threat=Threat(eps=1.0, attack_steps=1)),
    ]
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(
        f"{number}.png,{caption}\n" for number, caption in enumerate(("a pear", "a fig") * 8)
    ))  # fmt: skip
    for number in range(16):
        Image.new("RGB", (40, 40), (16 * number, 99, 9)).save(tmp_path / f"{number}.png")
    cfg = small_run(
        shards, objective="clipag+dreams", candidates="all", learn_scale=True, scale=30.0,
        stages=stages, data=[Source("table", str(tmp_path / "t.csv"), augment="pose")],
        clean_weight=0.5,
    )  # fmt: skip
    train.train(cfg, tmp_path / "whole", torch.device("cpu"))
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "00000002.pt", tmp_path / "resumed")
    train.train(cfg, tmp_path / "resumed", torch.device("cpu"))
    whole, resumed = (torch.load(tmp_path / n / "00000004.pt") for n in ("whole", "resumed"))
    assert_same_training(whole, resumed)
    scale = whole["temperature"]["logit_scale"]
    assert torch.equal(scale, resumed["temperature"]["logit_scale"])
    model = clip.load_model(tmp_path / "whole" / "model")
    assert model.logit_scale == scale and scale.exp() != pytest.approx(30.0, rel=1e-5)
    assert "dreams" in (tmp_path / "whole" / "model" / "README.md").read_text()


@pytest.mark.slow
def test_a_run_with_other_data_or_another_text_tower_is_not_resumed(shards, tmp_path):
    table = tmp_path / "t.csv"
    pairs = "".join(f"{number}.png,a pear\n" for number in range(16))
    table.write_text("image,caption\n" + pairs)
    for number in range(16):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.png")
    model = clip.load_model("clip-mini")
    model.save_pretrained(tmp_path / "start")
    cfg = small_run(
        shards, model=str(tmp_path / "start"), data=[Source("table", str(table))], steps=1
    )  # fmt: skip
    train.train(cfg, tmp_path / "run", torch.device("cpu"))
    table.write_text("image,caption\n" + pairs.replace("pear", "fig"))
    with pytest.raises(clip.ClipagError, match="another list of pictures and captions"):
        train.train(cfg, tmp_path / "run", torch.device("cpu"))
    table.write_text("image,caption\n" + pairs)
    with torch.no_grad():
        model.text.projection.bias.add_(1)
    model.save_pretrained(tmp_path / "start")
    with pytest.raises(clip.ClipagError, match="another text tower"):
        train.train(cfg, tmp_path / "run", torch.device("cpu"))
