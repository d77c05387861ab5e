import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.base import normalize

# A guide measures losses in float32, so the losses of unit vectors differ by some 1e-7, and so do
# gradients, in units of their largest entry.
CLOSE = 1e-6


def images64(*shape):
    return torch.rand(*shape, dtype=torch.float64)


def loss_and_gradient(guide, images):
    """Return the losses (B,) of images and their gradient (B, 3, H, W)."""
    images = images.clone().requires_grad_(True)
    losses = guide.loss(images)
    (gradient,) = torch.autograd.grad(losses.sum(), images)
    return losses.detach(), gradient


def assert_close(gradient, expected, tolerance=CLOSE):
    """Assert that two gradients agree within a tolerance, in units of the largest entry."""
    assert (gradient - expected).abs().max() <= tolerance * expected.abs().max()


def unit_embeddings(model, images):
    return F.normalize(model.encode_image(normalize(images)), dim=-1)


def test_the_loss_is_the_negative_similarity(model64):
    images = images64(2, 3, 64, 64)
    apple, castle = clip.text_target(model64, "apple"), clip.text_target(model64, "castle", 0.5)
    losses = clip.Guide(model64, [[apple], [apple, castle]]).loss(images)
    z = unit_embeddings(model64, images)
    assert losses[0].item() == pytest.approx(-(z[0] @ apple.embedding).item(), abs=CLOSE)
    both = z[1] @ apple.embedding + 0.5 * (z[1] @ castle.embedding)
    assert losses[1].item() == pytest.approx(-both.item(), abs=CLOSE)


def test_an_image_target_is_reached_by_its_own_image(model64):
    image = images64(3, 64, 64)
    guide = clip.Guide(model64, [[clip.image_target(model64, image)]])
    assert guide.loss(image[None]).item() == pytest.approx(-1, abs=CLOSE)


def test_the_gradient_is_that_of_the_formula(model64):
    images, make_views = images64(2, 3, 80, 80).requires_grad_(True), clip.Views(2, 2)
    targets = [clip.text_target(model64, text) for text in ("apple", "castle")]
    guide = clip.Guide(model64, [[target] for target in targets], make_views)
    torch.manual_seed(1)
    losses, gradient = loss_and_gradient(guide, images)
    torch.manual_seed(1)
    views, weights = make_views(images, model64.visual.native_size)
    z = model64.encode_image(normalize(views.flatten(0, 1))).unflatten(0, (2, 4))
    embeddings = torch.stack([target.embedding for target in targets])
    by_hand = -(torch.cosine_similarity(z, embeddings[:, None], dim=2) * weights).sum(1)
    (expected,) = torch.autograd.grad(by_hand.sum(), images)
    assert torch.allclose(losses.double(), by_hand, atol=CLOSE)
    assert_close(gradient, expected)


@pytest.mark.parametrize("max_views", [1, 3, 4, 7])
def test_chunks_change_nothing(model64, max_views):
    images = images64(3, 3, 64, 64)
    targets = [[clip.text_target(model64, text)] for text in ("apple", "castle", "fish")]

    def two_steps(most):
        guide = clip.Guide(
            model64,
            targets,
            clip.Views(2, 2),
            seeds=[5, 5, 6],
            options=clip.RunOptions(max_views=most),
        )
        return [loss_and_gradient(guide, images) for _ in range(2)]

    for (losses, gradient), (whole_losses, whole_gradient) in zip(
        two_steps(max_views), two_steps(64), strict=True
    ):
        assert torch.allclose(losses, whole_losses, atol=CLOSE)
        assert_close(gradient, whole_gradient)


def test_weights_take_no_gradient(model):
    learning = copy.deepcopy(model).requires_grad_(True)
    guide = clip.Guide(learning, [[clip.text_target(model, "apple")]])
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    guide.loss(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in learning.parameters())


def test_guides_with_seeds_leave_the_global_generator_alone(model):
    guide = clip.Guide(model, [[clip.text_target(model, "apple")]], clip.Views(1, 1), seeds=[3])
    before = torch.get_rng_state()
    first = guide.loss(torch.ones(1, 3, 64, 64) / 2)
    assert torch.equal(before, torch.get_rng_state())
    assert guide.loss(torch.ones(1, 3, 64, 64) / 2) != first  # its own stream goes on


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 3, 64, 64), "2 images for 1 lists of targets"), ((3, 64, 64), r"not \(3, 64, 64\)"),
     ((1, 4, 64, 64), "B, 3, H, W")],
)  # fmt: skip
def test_images_that_do_not_fit_the_guide_are_refused(model, shape, message):
    guide = clip.Guide(model, [[clip.text_target(model, "apple")]])
    with pytest.raises(clip.ClipagError, match=message):
        guide.loss(torch.ones(shape))


@pytest.mark.slow
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
    gradients = [loss_and_gradient(guide, images)[1].flatten() for guide in (exact, rounded)]
    assert 0.99 < torch.cosine_similarity(*gradients, dim=0) < 1
    start = torch.full((8, 3, 48, 48), 0.5)
    ends = [
        clip.ascend(clip.PixelCanvas(start, 0.3), guide, 20, progress=False).images
        for guide in (exact, rounded)
    ]
    judge = clip.Guide(model, targets, options=clip.RunOptions("float32"))
    before, reached, reached_rounded = (-judge.loss(x).mean().item() for x in (start, *ends))
    assert reached_rounded - before == pytest.approx(reached - before, rel=0.1)


def test_guides_that_cannot_be(model):
    with pytest.raises(clip.ClipagError, match=r"precision`? is 'int8'"):
        clip.Guide(
            model, [[clip.text_target(model, "apple")]], options=clip.RunOptions(precision="int8")
        )
    with pytest.raises(clip.ClipagError, match="`max_views` is 0"):
        clip.RunOptions(max_views=0)
    with pytest.raises(clip.ClipagError, match="no target"):
        clip.Guide(model, [[]])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_a_compiled_tower_guides_to_the_same_place(model64):
    class SmallTower(nn.Module):
        """The least that compiles: what is tested is the guide's use of torch.compile."""

        native_size = 16

        def __init__(self):
            super().__init__()
            self.project = nn.Linear(3 * 16 * 16, 8, dtype=torch.float64)

        def forward(self, image):
            return self.project(image.flatten(1)).tanh()

    small = copy.deepcopy(model64)
    small.visual = SmallTower().requires_grad_(False)
    image = images64(1, 3, 16, 16)
    target = clip.Target(F.normalize(images64(8), dim=0))
    plain, compiled = (
        loss_and_gradient(
            clip.Guide(small, [[target]], options=clip.RunOptions(compile=compile)), image
        )
        for compile in (False, True)
    )
    assert torch.allclose(plain[0], compiled[0], atol=CLOSE)
    assert_close(compiled[1], plain[1])


def test_the_spherical_distance_and_its_stop(model64):
    image = images64(1, 3, 64, 64)
    text = clip.text_target(model64, "apple")
    angle = torch.arccos(unit_embeddings(model64, image) @ text.embedding)

    def spherical(*targets):
        return loss_and_gradient(clip.Guide(model64, [targets], spherical=True), image)

    loss, gradient = spherical(text)
    # The derivative of the squared angle is at most 2π.
    assert loss.item() == pytest.approx((angle**2 / 2).item(), abs=2 * math.pi * CLOSE)
    assert gradient.abs().sum() > 0
    stopped_loss, stopped = spherical(replace(text, stop=3.0))  # nearer than that already
    assert stopped_loss.item() == pytest.approx(loss.item()) and stopped.abs().sum() == 0
    away_loss, away_gradient = spherical(replace(text, weight=-0.5))
    assert away_loss.item() == pytest.approx(-0.5 * loss.item(), abs=CLOSE)
    assert_close(away_gradient, -0.5 * gradient)
    with pytest.raises(clip.ClipagError, match="spherical=True"):
        clip.Guide(model64, [[replace(text, stop=0.5)]])
