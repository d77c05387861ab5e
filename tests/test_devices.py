"""Device and dtype follow the model: every command draws the same picture on another device."""

import numpy as np
import pytest
import torch
from elsewhere import Away, elsewhere
from PIL import Image

import clipag_plugins as clip
from clipag_plugins.cli import main

SMALL = ["--size", "48", "--precision", "float32"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "an apple", "a castle", "--steps", "2", "--tries", "2", *SMALL],
        ["generate", "an apple", "--init", "photo.png", "--steps", "2", "--views", "3", *SMALL],
        ["draw", "an apple", "--steps", "2", "--strokes", "5", *SMALL],
        ["vqgan", "an apple", "--steps", "2", "--views", "2", *SMALL],
        ["style", "photo.png", "fire", "--network", "--steps", "2", "--patches", "2", *SMALL],
        ["style", "photo.png", "fire", "--no-network", "--steps", "2", "--patches", "2", *SMALL],
        ["explain", "photo.png", "a cat", "--steps", "2", "--size", "48"],
        ["pag", "photo.png", "a cat", "--samples", "2", "--size", "48"],
        ["attack", "photo.png", "a cat", "--towards", "a dog", "--steps", "2", "--size", "48"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_another_device_draws_the_same(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    Image.fromarray(noise).save("photo.png")
    for device in ("cpu", "meta"):
        (tmp_path / device).mkdir()
    assert main([*command, "--device", "cpu", "--out", "cpu"]) == 0
    with elsewhere():
        assert main([*command, "--device", "meta", "--out", "meta"]) == 0
    paths = sorted((tmp_path / "cpu").glob("*.png"))
    assert paths
    for path in paths:
        files = (path, tmp_path / "meta" / path.name)
        expected, drawn = (np.asarray(Image.open(file), int) for file in files)
        # The pretended device computes with the CPU's kernels, so the two round alike. Some
        # operations of autograd are split up there, though: a value may fall on the other side of a
        # rounding to 8 bits, which the colours of a heat map triple.
        assert np.abs(expected - drawn).max() <= 3


def test_another_device_is_told_apart():
    with elsewhere():
        x = torch.ones(2, 3, device="meta")
        assert isinstance(x, Away) and (x + 1).cpu().sum() == 12
        with pytest.raises(RuntimeError, match="of the CPU and of another device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="the CPU's generator"):
            torch.rand(3, device="meta", generator=torch.Generator())
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_another_device_in_lower_precision(precision):
    with elsewhere():
        model = clip.load_model(device="meta")
        target = clip.text_target(model, "an apple")
        guide = clip.Guide(
            model, [[target]], clip.Views(2, 2), options=clip.RunOptions(precision, max_views=3)
        )
        images = torch.rand(1, 3, 48, 48, device="meta", requires_grad=True)
        guide.loss(images).sum().backward()
        assert images.grad.device.type == "meta" and images.grad.cpu().abs().sum() > 0
