"""The mask: what is black stays byte for byte, what is white changes, and the guide sees both."""

import numpy as np
import pytest
import torch
from PIL import Image

import clipag_plugins as clip
from clipag_plugins.canvas import PixelCanvas
from clipag_plugins.masks import Masked, MaskedCanvas, WholeAndPart
from clipag_plugins.multiscale import PyramidCanvas

QUIET = clip.RunOptions("float32", progress=False)


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def mask():
    white = Image.new("L", (90, 60), 0)
    white.paste(255, (30, 20, 60, 50))
    return white


def test_what_is_black_stays_byte_for_byte(model, picture, mask):
    drawn = clip.generate("a red apple", model, steps=3, init=Masked(picture, mask), options=QUIET)
    before, after = np.asarray(picture, int), np.asarray(drawn, int)
    black = np.asarray(mask) == 0
    assert after.shape == before.shape
    assert (after[black] == before[black]).all()
    assert np.abs(after[30:40, 40:50] - before[30:40, 40:50]).mean() > 2


def test_the_seam_is_soft_and_inside_the_white_part(picture, mask):
    _, weight = Masked(picture, mask).read()
    white = torch.from_numpy(np.array(mask)) > 0
    assert (weight[0, 0][~white] == 0).all()
    row = weight[0, 0, 35, 30:60]
    assert row[0] < 0.7 and row[15] == 1 and (row[1:4] >= row[:3]).all()


def test_the_size_may_be_chosen(model, picture, mask):
    options = {"steps": 1, "init": Masked(picture, mask), "options": QUIET}
    assert clip.generate("a cat", model, size=(64, 48), **options).size == (64, 48)


def test_the_guide_sees_the_whole_and_the_part():
    weight = torch.zeros(1, 1, 100, 200)
    weight[..., 40:60, 150:170] = 1
    views = WholeAndPart(clip.one_view, weight)
    image = torch.zeros(1, 3, 100, 200)
    image[..., 40:60, 150:170] = 1
    (whole, part), weights = views(image, 30)[0][0], views(image, 30)[1]
    assert views.count == 2 and weights.tolist() == [0.5, 0.5]
    assert part.mean() > 5 * whole.mean()


@pytest.mark.parametrize(
    ("mask", "words"),
    [(Image.new("L", (9, 9), 0), "no white part"), ("none.png", "There is no picture at none.png")],
)
def test_masks_that_cannot_be(model, picture, mask, words):
    with pytest.raises(clip.ClipagError, match=words):
        clip.generate("a cat", model, init=Masked(picture, mask), options=QUIET)


def test_the_command_line(tmp_path, monkeypatch, capsys, picture, mask):
    from clipag_plugins.cli import main

    monkeypatch.chdir(tmp_path)
    picture.save("photo.png")
    mask.save("mask.png")
    command = ["generate", "a cat", "--steps", "1", "--precision", "float32"]
    assert main([*command, "--init", "photo.png", "--mask", "mask.png", "--out", "new.png"]) == 0
    with Image.open("new.png") as file:
        black = np.asarray(mask) == 0
        assert (np.asarray(file)[black] == np.asarray(picture)[black]).all()
        assert file.info["mask"] == "mask.png" and file.info["tries"] == "1"
    assert main([*command, "--mask", "mask.png", "--out", "other.png"]) == 2
    assert "--mask mask.png needs a picture" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["vqgan", "a cat", "--steps", "2", "--init", "photo.png"],
        ["style", "photo.png", "a fire", "--steps", "2", "--patches", "2", "--network"],
        ["style", "photo.png", "a fire", "--steps", "2", "--patches", "2", "--no-network"],
    ],
)
def test_vqgan_and_style_take_it_too(tmp_path, monkeypatch, picture, mask, command):
    from clipag_plugins.cli import main

    monkeypatch.chdir(tmp_path)
    picture.save("photo.png")
    mask.save("mask.png")
    assert main([*command, "--mask", "mask.png", "--out", "new.png"]) == 0
    black = np.asarray(mask) == 0
    with Image.open("new.png") as file:
        drawn = np.asarray(file.convert("RGB"), int)
        assert file.info["mask"] == "mask.png"
    before = np.asarray(picture, int)
    assert (drawn[black] == before[black]).all()
    assert (drawn[~black] != before[~black]).any()


@pytest.mark.parametrize("kind", [PixelCanvas, PyramidCanvas])
def test_a_small_mask_changes_no_faster_than_a_whole_picture(kind):
    start = torch.full((1, 3, 64, 64), 0.5)

    def changed(weight):
        canvas = MaskedCanvas(kind(start), start, weight)
        optimizer = canvas.optimizer()
        canvas.render().sum().backward()
        optimizer.step()
        return (canvas.render() - start).abs().max().item()

    small = torch.zeros(1, 1, 64, 64)
    small[..., 24:40, 24:40] = 1
    assert changed(small) < 1.5 * changed(torch.ones_like(small))
