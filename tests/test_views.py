import pytest
import torch

import clipag_plugins as clip


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
