import json
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.base import normalize
from clipag_plugins.finetune.embedded import corpus, image_tower, memory
from clipag_plugins.finetune.embedded.image_tower import Pictures
from clipag_plugins.finetune.embedded.recipe import MINI
from clipag_plugins.finetune.embedded.text_tower import with_hypernyms
from clipag_plugins.mini import build_towers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("embedded.corpus", ["--work", "w"], "building the corpus needs npm, apt-get, dpkg-deb"),
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
    """Figures that are measured on them stay comparable."""
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
    ("text", "expected"),
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
def test_the_kind_of_its_head_noun_follows_a_text(text, expected):
    assert with_hypernyms(text, KINDS) == expected


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


def test_a_memory_is_filled_from_the_training_pictures(tmp_path):
    split_of = {"pear": "train", "apple": "train", "plum": "test", "fox": "unseen"}
    captions = ["pear", "apple", "plum", "fox", "pear"]
    rows = [corpus.Picture(i, c, "", "", "", split_of[c]) for i, c in enumerate(captions)]
    (tmp_path / "captions.json").write_text(json.dumps([asdict(row) for row in rows]))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 4), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pixels)
    for name, tower in zip(("tower", "text"), build_towers(MINI), strict=True):
        save_file(tower.state_dict(), tmp_path / f"{name}.safetensors")
    state = memory.build_memory(tmp_path, {"mine": "tower"})

    tower, text = (t.eval() for t in build_towers(MINI))
    tower.load_state_dict(load_file(tmp_path / "tower.safetensors"))
    text.load_state_dict(load_file(tmp_path / "text.safetensors"))
    with torch.no_grad():
        keys = F.normalize(text(clip.tokenize(["apple", "pear"])), dim=1)
        small = Pictures(torch.from_numpy(pixels), 48).plain(torch.tensor([1, 0, 4]))
        apple, *pears = F.normalize(tower(normalize(small)), dim=1)
    means = torch.stack([apple, sum(pears) / 2])
    torch.testing.assert_close(state["keys"], keys)
    torch.testing.assert_close(state["mine"], means - means.mean(dim=0))


def test_the_image_towers_have_configs_with_their_paths(tmp_path):
    vanilla, clipag = (
        image_tower.config_of(kind, tmp_path, 3, ["steps=2"]) for kind in ("vanilla", "clipag")
    )
    assert vanilla.model == str(tmp_path / "untrained")
    assert clipag.model == str(tmp_path / "clip-mini" / "model")
    assert clipag.data[0].path == clipag.validation.path == str(tmp_path)
    assert (clipag.seed, clipag.steps, len(clipag.stages)) == (3, 2, 3)
    assert [stage.threat.eps for stage in clipag.stages] == [0.75, 1.5, 1.5]


def test_the_image_towers_start_from_the_frozen_text_tower(tmp_path):
    _, text = build_towers(MINI)
    save_file({k: v.half() for k, v in text.state_dict().items()}, tmp_path / "text.safetensors")
    model = clip.load_model(image_tower.write_untrained(tmp_path, seed=0))
    tokens = clip.tokenize(["a pear"])
    expected = image_tower.load_text_tower(tmp_path)(tokens)
    torch.testing.assert_close(model.encode_text(tokens), expected)
    assert model.text.memory is None
