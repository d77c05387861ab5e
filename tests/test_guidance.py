import copy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import base, mixture, sampler
from clipag_plugins.canvas import NormalizedGradient, ThresholdedCanvas
from clipag_plugins.sampler import sample

QUIET = clip.RunOptions(progress=False)
EXAMPLES = Path(__file__).parent.parent / "examples"


def test_views_have_shape_weights_and_gradient():
    images = torch.rand(2, 3, 100, 100, requires_grad=True)
    views, weights = clip.Views(global_views=3, patch_views=5)(images, 48)
    assert views.shape == (2, 8, 3, 48, 48)
    assert weights.sum().item() == pytest.approx(1)
    assert weights[-1] / weights[0] == pytest.approx(5)
    views.sum().backward()
    assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_views_of_an_image_do_not_depend_on_its_neighbours():
    images = torch.rand(2, 3, 64, 64)
    views = clip.Views(global_views=3, patch_views=2)
    torch.manual_seed(5)
    together = views(images, 48)[0]
    for number in range(2):
        torch.manual_seed(5)
        assert torch.equal(together[number], views(images[number : number + 1], 48)[0][0])


def test_loss_is_the_negative_similarity(model):
    images = torch.rand(2, 3, 64, 64)
    apple, castle = clip.text_target(model, "apple"), clip.text_target(model, "castle", 0.5)
    losses = clip.Guide(model, [[apple], [apple, castle]], options=clip.RunOptions("float32")).loss(
        images
    )
    z = model.encode_image(base.normalize(images))
    z = torch.nn.functional.normalize(z, dim=-1)
    assert losses[0].item() == pytest.approx(-(z[0] @ apple.embedding).item(), abs=1e-5)
    both = z[1] @ apple.embedding + 0.5 * (z[1] @ castle.embedding)
    assert losses[1].item() == pytest.approx(-both.item(), abs=1e-5)


def test_an_image_target_is_reached_by_its_own_image(model):
    image = torch.rand(3, 64, 64)
    guide = clip.Guide(model, [[clip.image_target(model, image)]])
    assert guide.loss(image[None]).item() == pytest.approx(-1, abs=1e-4)


def test_normalized_step_has_its_length():
    pixels = torch.nn.Parameter(torch.rand(2, 3, 8, 8))
    before = pixels.detach().clone()
    (pixels * torch.randn_like(pixels)).sum().backward()
    NormalizedGradient([pixels], 0.7).step()
    lengths = (pixels - before).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.full((2,), 0.7), atol=1e-5)


def test_ascent_keeps_the_best_iterate(model):
    start = torch.full((1, 3, 64, 64), 0.5)
    guide = clip.Guide(model, [[clip.text_target(model, "red apple")]])
    seen, rendered = [], []

    class Counted(clip.PixelCanvas):
        def render(self):
            rendered.append(1)
            return super().render()

    ascent = clip.ascend(
        Counted(start, 0.03),
        guide,
        8,
        callback=lambda step, images, losses: seen.append(losses.item()),
        progress=False,
    )
    assert len(seen) == len(rendered) == 9  # before each update, and once after the last
    assert ascent.losses.item() == min(seen) < seen[0]
    assert guide.loss(ascent.images).item() == pytest.approx(min(seen), abs=1e-5)
    assert ascent.steps == 8


def test_callback_ends_the_ascent(model):
    guide = clip.Guide(model, [[clip.text_target(model, "red apple")]])
    canvas = clip.PixelCanvas(torch.rand(1, 3, 64, 64))
    ascent = clip.ascend(canvas, guide, 50, callback=lambda step, *_: step == 2, progress=False)
    assert ascent.steps == 2


def test_ctrl_c_keeps_the_best_so_far(model):
    def interrupt(step, images, losses):
        if step == 3:
            raise KeyboardInterrupt

    guide = clip.Guide(model, [[clip.text_target(model, "red apple")]])
    canvas = clip.PixelCanvas(torch.rand(1, 3, 64, 64))
    ascent = clip.ascend(canvas, guide, 50, callback=interrupt, progress=False)
    assert ascent.interrupted and ascent.steps == 3
    assert torch.isfinite(ascent.losses).all()


@pytest.mark.parametrize("side", [32, 48, 100])
def test_views_of_any_side(side):
    views, _ = clip.Views(2, 2)(torch.rand(1, 3, side, side), 48)
    assert views.shape == (1, 4, 3, 48, 48)


def test_notebook_settings_treat_images_apart(model):
    start = torch.rand(2, 3, 48, 48)
    targets = [[clip.text_target(model, text)] for text in ("apple", "castle")]

    def drawn(which):
        canvas = ThresholdedCanvas(start[which])
        return clip.ascend(canvas, clip.Guide(model, targets[which]), 3, progress=False).images

    assert torch.allclose(drawn(slice(0, 2))[1:], drawn(slice(1, 2)), atol=1e-3)


def test_dynamic_threshold_brings_pixels_back():
    start = torch.rand(2, 3, 16, 16) * 3 - 1
    start[1] = 0.5 + (start[1] - 0.5) / 3
    start[1, 0, 0] *= 5  # 2 % of all
    canvas = ThresholdedCanvas(start)
    canvas.constrain()
    # Saharia et al., section 2.3: the 0.95 quantile of |2x − 1|, but at least 1, becomes 1.
    signed = 2 * start - 1
    limit = torch.quantile(signed.abs().flatten(1), 0.95, dim=1).clamp_min(1).view(2, 1, 1, 1)
    assert limit[0] > 1 and limit[1] == 1
    expected = (signed.clamp(-limit, limit) / limit + 1) / 2
    torch.testing.assert_close(canvas.pixels.data, expected)


def test_mixture_has_the_moments_it_was_given():
    gaussians = mixture.load()
    drawn = gaussians.sample(200, torch.Generator().manual_seed(0))
    drawn = drawn.view(len(gaussians.means), 200, -1)
    # Clamping to [0, 1] pulls in the tails, so the means agree only roughly.
    assert (drawn.mean(1) - gaussians.means).abs().mean() < 0.03


def test_a_mixture_of_ones_own(model, tmp_path):
    folder = tmp_path / "pictures" / "blue"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (20, 20), (0, 0, 200 + number)).save(folder / f"{number}.png")
    module = "clipag_plugins.finetune.embedded.starts"
    command = [sys.executable, "-m", module, "--folder", "pictures", "--out", "own.safetensors"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    drawn = []
    options = {"steps": 1, "size": 32, "views": 1, "options": QUIET}
    sample(
        ["apple"],
        model,
        init=tmp_path / "own.safetensors",
        callback=lambda step, images, losses: drawn.append(images),
        **options,
    )
    red, _, blue = drawn[0].mean(dim=(0, 2, 3)).tolist()
    assert blue == pytest.approx(201 / 255, abs=0.02) and red < 0.02
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(clip.ClipagError, match=r"cut\.safetensors"):
        sample(["apple"], model, init=tmp_path / "cut.safetensors", **options)
    whole = torch.zeros(2, 768), torch.zeros(2, 768, 3)
    for means, factors in (
        (torch.tensor(1.0), whole[1]),
        (whole[0][:0], whole[1][:0]),
        (whole[0], whole[1][:1]),
        (whole[0], whole[1][..., 0]),
        (whole[0] * torch.nan, whole[1]),
    ):
        save_file({"means": means, "factors": factors.contiguous()}, tmp_path / "odd.safetensors")
        with pytest.raises(clip.ClipagError, match=r"odd\.safetensors"):
            mixture.load(tmp_path / "odd.safetensors")


def test_same_seed_same_picture_alone_or_in_a_batch(model):
    options = {"steps": 4, "size": 64, "seed": 7, "options": QUIET}
    alone = sample(["red apple"], model, **options).images
    again = sample(["red apple"], model, **options).images
    batch = sample(["red apple", "castle"], model, **options).images
    other = sample(["red apple"], model, **{**options, "seed": 8}).images
    assert torch.equal(alone, again)
    assert torch.allclose(alone[0], batch[0], atol=1e-2)
    assert (alone - other).abs().mean() > 0.01


def test_of_several_tries_the_best_under_fresh_views_is_kept(model):
    texts = ["red apple", "castle", "frog"]
    options = {"steps": 2, "size": 48, "options": QUIET}
    seen = []
    kept = sample(
        texts, model, tries=4, callback=lambda step, images, losses: seen.append(images), **options
    )
    assert len(kept.images) == len(kept.losses) == 3 and len(seen[0]) == 12
    starts = seen[0].view(3, 4, 3, 48, 48)
    assert (starts[:, 0] - starts[:, 1]).abs().mean() > 0.01
    assert [row // 4 for row in kept.rows] == [0, 1, 2]
    targets = [[clip.text_target(model, text)] for text in texts for _ in range(4)]
    judge = clip.Guide(model, targets, sampler.EMBEDDED_SETTINGS.views_of(64), seeds=[9] * 12)
    losses = judge.loss(seen[-1])
    assert losses[kept.rows].mean() < losses.mean() - 0.005
    for tries, init in ((0, "gmm"), (2, Image.new("RGB", (48, 48)))):
        with pytest.raises(clip.ClipagError, match=f"`tries` is {tries}"):
            sample(texts, model, tries=tries, init=init, **options)


def test_sampling_leaves_the_callers_random_numbers_alone(model):
    state = torch.get_rng_state()
    sample(["red apple"], model, steps=1, size=32, options=QUIET)
    assert torch.equal(state, torch.get_rng_state())


def test_generate_raises_similarity_and_starts_from_a_picture(model, tmp_path):
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


def test_a_canvas_of_ones_own(tmp_path):
    assert len((EXAMPLES / "pyramid.py").read_text().splitlines()) <= 30
    command = [sys.executable, str(EXAMPLES / "pyramid.py"), "a red apple", "3"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert Image.open(tmp_path / "pyramid.png").size == (224, 224)


def look(images, guide):
    """Loss and gradient of a guide."""
    images = images.clone().requires_grad_(True)
    losses = guide.loss(images)
    (gradient,) = torch.autograd.grad(losses.sum(), images)
    return losses.detach(), gradient


def test_the_gradient_is_that_of_the_formula(model):
    images, views = torch.rand(2, 3, 80, 80, requires_grad=True), clip.Views(2, 2)
    texts = [clip.text_target(model, text) for text in ("apple", "castle")]
    guide = clip.Guide(model, [[text] for text in texts], views, options=clip.RunOptions("float32"))
    torch.manual_seed(1)
    losses, gradient = look(images, guide)
    torch.manual_seed(1)
    drawn, weights = views(images, model.visual.native_size)
    z = model.encode_image(base.normalize(drawn.flatten(0, 1))).unflatten(0, (2, 4))
    goals = torch.stack([text.embedding for text in texts])
    by_hand = -(torch.cosine_similarity(z, goals[:, None], dim=2) * weights).sum(1)
    (expected,) = torch.autograd.grad(by_hand.sum(), images)
    assert torch.allclose(losses, by_hand, atol=1e-6)
    assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.99999


@pytest.mark.parametrize("max_views", [1, 3, 4, 7])
def test_chunks_change_nothing(model, max_views):
    images = torch.rand(3, 3, 64, 64)
    targets = [[clip.text_target(model, text)] for text in ("apple", "castle", "fish")]

    def seen(most):
        guide = clip.Guide(
            model,
            targets,
            clip.Views(2, 2),
            seeds=[5, 5, 6],
            options=clip.RunOptions(max_views=most),
        )
        return [look(images, guide) for _ in range(2)]

    for (losses, gradient), (whole_losses, whole) in zip(seen(max_views), seen(64), strict=True):
        assert torch.allclose(losses, whole_losses, atol=1e-6)
        assert torch.allclose(gradient, whole, atol=1e-7)


def test_weights_take_no_gradient(model):
    learning = copy.deepcopy(model).requires_grad_(True)
    guide = clip.Guide(learning, [[clip.text_target(model, "apple")]])
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    guide.loss(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in learning.parameters())


def test_guides_leave_the_global_generator_alone_if_they_have_seeds(model):
    guide = clip.Guide(model, [[clip.text_target(model, "apple")]], clip.Views(1, 1), seeds=[3])
    before = torch.get_rng_state()
    first = guide.loss(torch.ones(1, 3, 64, 64) / 2)
    assert torch.equal(before, torch.get_rng_state())
    assert guide.loss(torch.ones(1, 3, 64, 64) / 2) != first  # its own stream goes on
    with pytest.raises(ValueError, match="Input size"):
        guide.loss(torch.ones(1, 4, 64, 64))
    assert torch.equal(before, torch.get_rng_state())


def test_a_picture_does_not_depend_on_its_batch():
    batch = clip.generate(["apple", "castle"], steps=3, seed=[7, 8], size=64, options=QUIET)
    alone = clip.generate("castle", steps=3, seed=7, size=64, options=QUIET)
    difference = np.abs(np.asarray(batch[2], int) - np.asarray(alone, int))
    assert difference.max() <= 1 < np.abs(np.asarray(batch[3], int) - np.asarray(alone, int)).max()


def test_bfloat16_guides_to_the_same_place(model):
    texts = ("red apple", "castle", "rocket", "panda", "bus", "mushroom", "tomato", "eagle")
    targets = [[clip.text_target(model, text)] for text in texts]
    exact, rounded = (
        clip.Guide(
            model, targets, clip.Views(2, 1), seeds=range(8), options=clip.RunOptions(precision)
        )
        for precision in ("float32", "bfloat16")
    )
    images = torch.rand(8, 3, 64, 64)
    cosine = torch.cosine_similarity(
        look(images, exact)[1].flatten(), look(images, rounded)[1].flatten(), dim=0
    )
    assert 0.99 < cosine < 1
    start = torch.full((8, 3, 48, 48), 0.5)
    ends = [
        clip.ascend(clip.PixelCanvas(start, 0.3), guide, 20, progress=False).images
        for guide in (exact, rounded)
    ]
    plain = clip.Guide(model, targets, options=clip.RunOptions("float32"))
    before, reached, reached_rounded = (-plain.loss(x).mean().item() for x in (start, *ends))
    assert reached_rounded - before == pytest.approx(reached - before, rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"precision": "int8"}, "precision is 'int8'"), ({"max_views": 0}, "`max_views` is 0")],
)
def test_guides_that_cannot_be(model, wrong, message):
    with pytest.raises(clip.ClipagError, match=message):
        clip.Guide(model, [[clip.text_target(model, "apple")]], options=clip.RunOptions(**wrong))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_a_compiled_tower_guides_alike():
    torch.manual_seed(0)
    small = clip.model.CLIP(16, 32, 1, 64, 8, 77, 49408, 64, 1, 1).eval().requires_grad_(False)
    image, target = torch.rand(1, 3, 32, 32), clip.text_target(small, "apple")
    plain, compiled = (
        clip.Guide(small, [[target]], options=clip.RunOptions("float32", compile=how))
        for how in (False, True)
    )
    for ours, theirs in zip(look(image, plain), look(image, compiled), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_spherical_distance_and_its_stop(model):
    image = torch.rand(1, 3, 64, 64)
    text = clip.text_target(model, "apple")
    z = F.normalize(model.encode_image(base.normalize(image)), dim=1)
    angle = torch.arccos(z @ text.embedding)

    def spherical(*targets):
        return look(
            image, clip.Guide(model, [targets], spherical=True, options=clip.RunOptions("float32"))
        )

    loss, gradient = spherical(text)
    assert loss.item() == pytest.approx((angle**2 / 2).item(), abs=1e-5)
    assert gradient.abs().sum() > 0
    stopped_loss, stopped = spherical(replace(text, stop=3.0))  # nearer than that already
    assert stopped_loss.item() == pytest.approx(loss.item()) and stopped.abs().sum() == 0
    away, away_gradient = spherical(replace(text, weight=-0.5))
    assert away.item() == pytest.approx(-0.5 * loss.item(), abs=1e-6)
    assert torch.allclose(away_gradient, -0.5 * gradient, atol=1e-7)
    with pytest.raises(clip.ClipagError, match="spherical=True"):
        clip.Guide(model, [[replace(text, stop=0.5)]])
