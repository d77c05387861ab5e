"""`clip-lite` and `clipag-lite`, whose two image towers look at one picture."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import embedded, mixture, starts
from clipag_plugins.arguments import RunOptions
from clipag_plugins.base import embed_images, resample
from clipag_plugins.errors import ClipagError
from clipag_plugins.pictures import from_pil
from clipag_plugins.sampler import sample, settings_for
from clipag_plugins.views import one_view

CAT = Path(__file__).parent.parent / "examples" / "cat-face.png"
TEXTS = ["a red apple", "a castle", "a dog"]


@pytest.fixture(scope="module")
def lite():
    return clip.load_model("clipag-lite")


def recalled_concepts(lite, texts):
    """The mean of the concepts, each weighted by the exponential of its key's cosine / 0.05."""
    concepts = lite.text.concepts
    words = clip.load_model("clipag-mini").text.words(clip.tokenize(texts))
    weights = (F.normalize(words, dim=1) @ concepts.keys.T / 0.05).exp()
    return weights @ concepts.values / weights.sum(dim=1, keepdim=True)


def test_a_cosine_is_the_weighted_mean_of_both_towers(lite):
    image = torch.rand(2, 3, 128, 128)
    tower = lite.visual.tower
    with torch.no_grad():
        z = F.normalize(lite.encode_image(image), dim=1)
        t = F.normalize(lite.encode_text(clip.tokenize(TEXTS)), dim=1)
        coarse, fine = tower.coarse(resample(image, 48)), tower.fine(image)
        recalled = recalled_concepts(lite, TEXTS)
        coarse_texts = clip.load_model("clipag-mini").encode_text(clip.tokenize(TEXTS))
    expected = sum(
        weight * F.normalize(each, dim=1) @ F.normalize(texts, dim=1).T
        for weight, each, texts in ((1 / 3, coarse, coarse_texts), (2 / 3, fine, recalled))
    )
    assert torch.allclose(z @ t.T, expected, atol=1e-5)


def test_the_coarse_tower_is_that_of_the_small_model(lite):
    small = clip.load_model("clipag-mini").visual.tower.state_dict()
    coarse = lite.visual.tower.coarse.state_dict()
    assert all(torch.equal(coarse[name], value) for name, value in small.items())


def test_the_coarse_tower_chooses_the_starts(lite):
    targets, tries = [clip.text_target(lite, text) for text in TEXTS], 2
    candidates = mixture.load().sample(1, torch.Generator().manual_seed(0))[:40]
    chosen = starts.nearest(candidates, targets, lite, tries)
    with torch.no_grad():
        small = clip.load_model("clipag-mini")
        z = embed_images(small, mixture.enlarge(candidates, 48))
    for text, of_target in zip(TEXTS, chosen, strict=True):
        for number, start in enumerate(of_target):
            likeness = z[number::tries] @ clip.text_target(small, text).embedding
            assert torch.equal(start, candidates[number::tries][likeness.argmax()])
    # They do not depend on the other targets of the batch.
    assert torch.equal(starts.nearest(candidates, targets[:1], lite, tries)[0], chosen[0])


@pytest.mark.slow
def test_starts_are_shown_before_the_first_step(lite):
    shown = []
    sample(
        ["a red apple"],
        lite,
        settings_for(lite, steps=1, tries=2),
        size=(48, 32),
        callback=lambda step, images, losses: shown.append(("step", images.shape)),
        preview=lambda images: shown.append(("start", images.shape)),
        options=RunOptions(progress=False),
    )
    assert shown == [(moment, (2, 3, 32, 48)) for moment in ("start", "step", "step")]


def test_it_survives_being_saved(lite, tmp_path):
    lite.save_pretrained(tmp_path / "saved")
    image = torch.rand(1, 3, 224, 224)
    state = tmp_path / "state.safetensors"
    save_file({k: v.contiguous() for k, v in lite.state_dict().items()}, state)
    for place in (tmp_path / "saved", state):
        copied = clip.load_model(place)
        assert copied.visual.native_size == 128
        with torch.no_grad():
            assert torch.allclose(copied.encode_image(image), lite.encode_image(image), atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("fine", "lite9"), ("fine", ["lite0"]), ("coarse", None), ("coarse", {"image_size": -1})],
)
def test_an_impossible_config_is_one_sentence(lite, tmp_path, setting, value):
    lite.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"][setting] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ClipagError, match=r"fine|coarse|image_size"):
        clip.load_model(tmp_path)


def test_auto_is_float32_on_a_cpu(lite):
    guide = clip.Guide(lite, [[clip.text_target(lite, "a dog")]])
    assert guide.dtype == torch.float32


def test_the_fine_weights_are_finite():
    folder = embedded.FOLDER
    for name in ("clip-lite", "clipag-lite"):
        state = load_file(folder / f"{name}.safetensors")
        assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())


@pytest.mark.slow
def test_every_command_takes_it(run, tmp_path):
    for command in (
        ["generate", "a red apple", "--steps", "2", "--tries", "1", "--size", "64"],
        ["draw", "a red apple", "--steps", "2", "--strokes", "8"],
        ["style", CAT, "fire", "--steps", "1", "--size", "64"],
        ["explain", CAT, "a cat"],
    ):
        out = tmp_path / f"{command[0]}{'.svg' if command[0] == 'draw' else '.png'}"
        result = run(*command, "--model", "clipag-lite", "--out", out)
        assert result.returncode == 0, result.stderr
        assert out.stat().st_size > 0


def test_a_few_steps_bring_a_picture_nearer(lite):
    options = RunOptions(progress=False)
    pictures = [
        clip.generate(
            "a red apple", lite, steps=steps, tries=1, init="noise", size=64, options=options
        )
        for steps in (1, 8)
    ]
    guide = clip.Guide(lite, [[clip.text_target(lite, "a red apple")]], one_view)
    losses = [guide.loss(from_pil(picture, (128, 128))[None]).item() for picture in pictures]
    assert losses[1] < losses[0] - 0.01
