import pytest
import torch
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.base import resample


def images(count=2, side=48):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, side, side, generator=generator)


def test_without_noise_it_is_the_model(vanilla):
    x = images()
    expected = F.normalize(vanilla.encode_image(x), dim=-1)
    torch.testing.assert_close(clip.smooth(vanilla, 0.0, 3).encode_image(x), expected)


def test_similarity_and_gradient_are_means_over_noise(vanilla):
    x = images(1).requires_grad_(True)
    target = clip.text_target(vanilla, "a red apple").embedding
    (clip.smooth(vanilla, 0.2, 4).encode_image(x) @ target).sum().backward()

    noise = torch.randn(4, *x.shape, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    total = torch.zeros_like(x)
    for n in noise:
        copy = (x.detach() + n * 0.2 / std).requires_grad_(True)
        cosine = (F.normalize(vanilla.encode_image(copy), dim=-1) @ target).sum()
        total += torch.autograd.grad(cosine, copy)[0]
    torch.testing.assert_close(x.grad, total / 4, rtol=1e-4, atol=1e-7)


def test_noise_is_as_strong_for_a_picture_of_any_side(vanilla):
    x = images(1, 224)
    shrunk = resample(x, vanilla.visual.native_size)
    found, expected = (clip.smooth(vanilla, 0.5, 4).encode_image(y) for y in (x, shrunk))
    torch.testing.assert_close(found, expected)


def test_noise_is_new_at_every_call_and_repeats_from_the_seed(vanilla):
    x = images()
    one, same, other = (clip.smooth(vanilla, 0.2, 2, seed=s) for s in (0, 0, 50))
    first = one.encode_image(x)
    assert torch.equal(first, same.encode_image(x))
    assert not torch.allclose(first, one.encode_image(x))
    assert not torch.allclose(first, other.encode_image(x))


@pytest.mark.slow
def test_it_stands_in_for_a_model_and_leaves_it_alone(vanilla):
    tower = vanilla.visual
    smoothed = clip.smooth(vanilla, 0.1, 2)
    picture = clip.generate(
        "a red apple", smoothed, steps=2, views=1, options=clip.RunOptions(progress=False)
    )
    assert picture.size == (224, 224)
    assert vanilla.visual is tower
    assert smoothed.visual.native_size == tower.native_size
    text = clip.tokenize("a red apple")
    assert torch.equal(smoothed.encode_text(text), vanilla.encode_text(text))


@pytest.mark.parametrize(("sigma", "samples"), [(-1.0, 2), (float("nan"), 2), (0.1, 0)])
def test_impossible_settings_are_refused(vanilla, sigma, samples):
    with pytest.raises(clip.ClipagError):
        clip.smooth(vanilla, sigma, samples)
