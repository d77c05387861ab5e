"""Randomized smoothing. In float64, where what is equal is equal on every processor."""

import pytest
import torch
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.base import CLIP_STD, resample


def images(count=2, side=48):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64)


def test_without_noise_it_is_the_model(model64):
    x = images()
    expected = F.normalize(model64.encode_image(x), dim=-1)
    torch.testing.assert_close(clip.smooth(model64, 0.0, 3).encode_image(x), expected)


def test_similarity_and_gradient_are_means_over_noise(model64):
    x = images(1).requires_grad_(True)
    target = clip.text_target(model64, "a red apple").embedding
    (clip.smooth(model64, 0.2, 4).encode_image(x) @ target).sum().backward()

    noise = torch.randn(4, *x.shape, generator=torch.Generator().manual_seed(0))
    std = torch.tensor(CLIP_STD, dtype=torch.float64).view(3, 1, 1)
    total = torch.zeros_like(x)
    for n in noise:
        copy = (x.detach() + n * 0.2 / std).requires_grad_(True)
        cosine = (F.normalize(model64.encode_image(copy), dim=-1) @ target).sum()
        total += torch.autograd.grad(cosine, copy)[0]
    torch.testing.assert_close(x.grad, total / 4)


def test_noise_is_as_strong_for_a_picture_of_any_side(model64):
    large = images(1, 224)
    small = resample(large, model64.visual.native_size)
    smoothed = (clip.smooth(model64, 0.5, 4).encode_image(x) for x in (large, small))
    torch.testing.assert_close(*smoothed)


def test_noise_is_new_at_every_call_and_repeats_from_the_seed(model64):
    x = images()
    one, same, other = (clip.smooth(model64, 0.2, 2, seed=s) for s in (0, 0, 50))
    first = one.encode_image(x)
    torch.testing.assert_close(first, same.encode_image(x))
    assert not torch.allclose(first, one.encode_image(x))
    assert not torch.allclose(first, other.encode_image(x))


@pytest.mark.slow
def test_it_stands_in_for_a_model_and_leaves_it_alone(vanilla):
    tower = vanilla.visual
    smoothed = clip.smooth(vanilla, 0.1, 2)
    quiet = clip.RunOptions(progress=False)
    picture = clip.generate("a red apple", smoothed, steps=2, views=1, tries=1, options=quiet)
    assert picture.size == (224, 224)
    assert vanilla.visual is tower
    assert smoothed.visual.native_size == tower.native_size
    text = clip.tokenize("a red apple")
    assert torch.equal(smoothed.encode_text(text), vanilla.encode_text(text))


@pytest.mark.parametrize(
    ("sigma", "samples", "message"),
    [
        (-1.0, 2, "`sigma` is -1"),
        (float("nan"), 2, "`sigma` is nan"),
        (0.1, 0, "`samples` is 0"),
    ],
)
def test_impossible_settings_are_refused(vanilla, sigma, samples, message):
    with pytest.raises(clip.ClipagError, match=message):
        clip.smooth(vanilla, sigma, samples)
