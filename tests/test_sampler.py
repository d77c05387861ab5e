import numpy as np
import pytest
import torch
from PIL import Image

import clipag_plugins as clip
from clipag_plugins import sampler
from clipag_plugins.sampler import sample

QUIET = clip.RunOptions(progress=False)


def test_the_same_seed_draws_the_same_picture(model):
    settings = sampler.settings_for(model, steps=2, tries=1)
    one, same, other = (
        sample(["red apple"], model, settings, seed=seed, size=64, options=QUIET).images
        for seed in (7, 7, 8)
    )
    assert torch.equal(one, same)
    assert (one - other).abs().mean() > 0.01


def test_a_start_does_not_depend_on_its_batch(model):
    def starts(prompts):
        images_by_step = []
        sample(
            prompts,
            model,
            sampler.settings_for(model, steps=1, tries=1),
            seed=7,
            size=64,
            callback=lambda step, images, losses: images_by_step.append(images),
            options=QUIET,
        )
        return images_by_step[0]

    alone, (first, second) = starts(["red apple"]), starts(["red apple", "castle"])
    torch.testing.assert_close(alone[0], first)
    assert (first - second).abs().mean() > 0.01


def test_a_picture_does_not_depend_on_its_batch(model64):
    options = {"steps": 3, "size": 64, "init": "noise", "tries": 1, "options": QUIET}
    batch = clip.generate(["apple", "castle"], model64, seed=[7, 8], **options)
    alone = np.asarray(clip.generate("castle", model64, seed=7, **options), int)
    assert np.abs(np.asarray(batch[2], int) - alone).max() <= 1
    assert np.abs(np.asarray(batch[3], int) - alone).max() > 1


@pytest.mark.slow
def test_of_several_tries_the_best_under_fresh_views_is_kept(model):
    texts = ["red apple", "castle", "frog"]
    images_by_step = []
    ascent = sample(
        texts,
        model,
        sampler.settings_for(model, steps=2, tries=4),
        size=48,
        callback=lambda step, images, losses: images_by_step.append(images),
        options=QUIET,
    )
    assert len(ascent.images) == len(ascent.losses) == 3 and len(images_by_step[0]) == 12
    starts = images_by_step[0].view(3, 4, 3, 48, 48)
    assert (starts[:, 0] - starts[:, 1]).abs().mean() > 0.01
    assert [row // 4 for row in ascent.rows] == [0, 1, 2]
    targets = [[clip.text_target(model, text)] for text in texts for _ in range(4)]
    judge = clip.Guide(model, targets, sampler.EMBEDDED_SETTINGS.views_of(64), seeds=[9] * 12)
    losses = judge.loss(images_by_step[-1])
    assert losses[ascent.rows].mean() < losses.mean() - 0.005
    for tries, init in ((0, "gmm"), (2, Image.new("RGB", (48, 48)))):
        with pytest.raises(clip.ClipagError, match=f"`tries` is {tries}"):
            sampler.settings_for(model, tries=tries, init=init)


def test_sampling_leaves_the_callers_random_numbers_alone(model):
    state = torch.get_rng_state()
    settings = sampler.settings_for(model, steps=1, tries=1)
    sample(["red apple"], model, settings, size=32, options=QUIET)
    assert torch.equal(state, torch.get_rng_state())


def test_pictures_start_from_a_picture_or_from_noise(model, tmp_path):
    Image.new("CMYK", (90, 60), (0, 200, 200, 0)).save(tmp_path / "start.jpg")
    picture = clip.generate(
        "red apple", model, steps=6, size=96, init=tmp_path / "start.jpg", options=QUIET
    )
    assert picture.size == (96, 96) and picture.mode == "RGB"
    pictures = clip.generate(["a castle"], model, steps=1, size=32, init="noise", options=QUIET)
    assert len(pictures) == 1


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"size": 4}, {"views": 0}, {"seed": -1}, {"init": "nothing.png"}]
)
def test_bad_arguments_are_named(model, bad):
    with pytest.raises(clip.ClipagError, match=str(next(iter(bad.values())))):
        clip.generate("red apple", model, options=QUIET, **bad)
