import pytest
import torch
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins.views import jitter


def test_views_have_shape_weights_and_gradient():
    images = torch.rand(2, 3, 100, 100, requires_grad=True)
    views, weights = clip.Views(global_views=3, patch_views=5)(images, 48)
    assert views.shape == (2, 8, 3, 48, 48)
    assert weights.sum().item() == pytest.approx(1)
    assert weights[-1] / weights[0] == pytest.approx(5)
    views.sum().backward()
    assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_views_of_an_image_do_not_depend_on_its_neighbours():
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    views = clip.Views(global_views=3, patch_views=2)
    torch.manual_seed(5)
    together = views(images, 48)[0]
    for number in range(2):
        torch.manual_seed(5)
        alone = views(images[number : number + 1], 48)[0][0]
        # float32 parameters of the views may differ in their last bit.
        torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [32, 48, 100])
def test_views_of_any_side(side):
    views, _ = clip.Views(2, 2)(torch.rand(1, 3, side, side), 48)
    assert views.shape == (1, 4, 3, 48, 48)


def kornias(views, images, side):
    """Return the same global views, or patch views that are as large as the image, of kornia's."""
    import kornia.augmentation as K

    strengths = (views.brightness, views.contrast, views.saturation)
    jiggle = K.ColorJiggle(*((max(0.0, 1 - s), 1 + s) for s in strengths), p=1.0)
    jiggle = [jiggle] if any(strengths) else []
    shift, area = (views.translate, views.translate), views.cutout**2
    move = [K.RandomAffine(0.0, shift, views.scale, padding_mode="border", p=1.0)]
    cut = [K.RandomErasing((area, area), (1.0, 1.0), 0.5, p=1.0)] if area else []
    tilt = [K.RandomPerspective(views.perspective, p=1.0)] if views.perspective else []
    if views.patch_views:
        torch.rand(views.patch_views, 2)  # the place of each crop
    steps = tilt + jiggle + cut if views.patch_views else jiggle + move + cut
    return torch.nn.Sequential(*steps)(images.expand(views.count, -1, -1, -1))


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 1e-5),
        ({"scale": (0.5, 0.9), "cutout": 0.3}, 1e-5),
        ({"saturation": 0.0}, 1e-5),
        ({"brightness": 0.0, "contrast": 0.0, "translate": 0.0}, 1e-5),
        ({"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "cutout": 0.0}, 1e-5),
        ({"patch_views": 20, "patch": 1.0}, 1e-5),
        # A crop in perspective is sampled once, by kornia twice.
        ({"patch_views": 20, "patch": 1.0, "perspective": 0.5}, 0.01),
    ],
)
def test_views_are_kornias_with_the_same_seed(settings, tolerance):
    count = {"global_views": 0 if "patch_views" in settings else 20, "patch_views": 0}
    views = clip.Views(**{**count, "noise": 0.0, **settings})
    for seed in range(3):
        torch.manual_seed(seed)
        colours = F.interpolate(torch.randn(1, 3, 6, 6), 64, mode="bicubic").sigmoid()
        images, upstream = colours.requires_grad_(), torch.randn(20, 3, 64, 64)
        torch.manual_seed(seed)
        expected = kornias(views, images, 64)
        following = torch.rand(3)
        torch.manual_seed(seed)
        result = views(images, 64)[0][0]
        assert torch.equal(torch.rand(3), following)
        assert (result - expected).abs().mean() < tolerance / 10
        assert (result - expected).abs().quantile(0.999) < tolerance
        gradients = [
            torch.autograd.grad(v, images, upstream)[0].flatten() for v in (result, expected)
        ]
        # Some pixels lie so close to where a channel is clamped that rounding decides.
        assert torch.cosine_similarity(*gradients, dim=0) > (0.999 if tolerance < 0.01 else 0.97)


@pytest.mark.parametrize("steps", [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2]])
def test_the_gradient_of_the_colours_is_that_of_finite_differences(steps):
    torch.manual_seed(0)
    factors = torch.tensor([[1.2, 0.7], [0.8, 1.3], [1.7, 0.4]], dtype=torch.float64)
    for count in (1, 2):  # views of their own, or one image that both views share
        colours = torch.rand(2, count, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: jitter(x, factors, steps), colours)


@pytest.mark.parametrize("colour", [0.0, 0.5, 1.0])
def test_grey_has_a_gradient_without_hue(colour):
    grey = torch.full((1, 1, 3, 2, 2), colour, requires_grad=True)
    (gradient,) = torch.autograd.grad(jitter(grey, torch.full((3, 4), 0.9), [2]).sum(), grey)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient, torch.full_like(gradient, 4.0))
