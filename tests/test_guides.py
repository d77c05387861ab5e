"""Several models that guide together."""

import pytest
import torch

import clipag_plugins as clip

QUIET = clip.RunOptions("float32", progress=False)


def test_the_loss_is_the_mean_and_so_is_its_gradient(model, vanilla):
    images = torch.rand(2, 3, 48, 48, requires_grad=True)
    guides = [
        clip.Guide(each, [[clip.text_target(each, "a cat")]] * 2, options=QUIET)
        for each in (model, vanilla)
    ]
    both = clip.Guides(guides)
    losses = both.loss(images)
    expected = torch.stack([guide.loss(images) for guide in guides]).mean(dim=0)
    torch.testing.assert_close(losses, expected)
    (gradient,) = torch.autograd.grad(losses.sum(), images)
    (of_expected,) = torch.autograd.grad(expected.sum(), images)
    torch.testing.assert_close(gradient, of_expected)
    assert both.readout(losses)[0] == "similarity"


@pytest.mark.slow
def test_two_models_draw_what_both_see(model, vanilla):
    options = {"steps": 4, "tries": 1, "size": 48, "views": 1, "options": QUIET}
    alone, both = (
        clip.generate("a cat", models, **options) for models in (model, [model, vanilla])
    )

    def similarity(judge, picture):
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        image = pixels.view(1, 48, 48, 3).permute(0, 3, 1, 2) / 255
        guide = clip.Guide(judge, [[clip.text_target(judge, "a cat")]], options=QUIET)
        return -guide.loss(image).item()

    assert similarity(vanilla, both) > similarity(vanilla, alone)


def test_no_guide_and_no_model_are_refused(model):
    with pytest.raises(clip.ClipagError, match="no guide"):
        clip.Guides([])
    with pytest.raises(clip.ClipagError, match="no model"):
        clip.generate("a cat", [])
