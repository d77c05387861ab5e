"""The canvases of many scales: they start at their start, and come nearer to the text."""

import pytest
import torch

import clipag_plugins as clip
from clipag_plugins.canvas import PixelCanvas
from clipag_plugins.multiscale import FourierCanvas, PyramidCanvas
from clipag_plugins.sampler import settings_for

QUIET = clip.RunOptions("float32", progress=False)


@pytest.mark.parametrize("kind", [PyramidCanvas, FourierCanvas])
@pytest.mark.parametrize(("height", "width"), [(48, 48), (33, 70)])
def test_it_renders_its_start(kind, height, width):
    start = 0.1 + 0.8 * torch.rand(2, 3, height, width)
    torch.testing.assert_close(kind(start).render().detach(), start)


@pytest.mark.parametrize("kind", [PyramidCanvas, FourierCanvas])
def test_the_gradient_of_one_pixel_changes_a_region(kind):
    canvas = kind(torch.full((1, 3, 64, 64), 0.5))
    optimizer = canvas.optimizer()
    # The gradient of one pixel alone.
    canvas.render()[0, 0, 10, 10].backward()
    optimizer.step()
    change = (canvas.render() - 0.5).abs()[0, 0]
    assert (change > 1e-4).float().mean() > 0.05


def test_a_step_leaves_alone_what_has_no_gradient():
    canvas = PyramidCanvas(torch.full((1, 3, 64, 64), 0.5))
    optimizer = canvas.optimizer()
    # A millionth of one corner's gradient: Adam would move it as far as the corner.
    image = canvas.render()
    (image[..., :8, :8].sum() + 1e-6 * image[..., 56:, 56:].sum()).backward()
    optimizer.step()
    change = (canvas.render() - 0.5).abs()
    assert change[..., 56:, 56:].max() < 1e-4 * change[..., :8, :8].min()


@pytest.mark.parametrize("canvas", ["pyramid", "fft"])
def test_it_comes_nearer_to_the_text(model, canvas):
    target = [[clip.text_target(model, "a red apple")]]
    guide = clip.Guide(model, target, options=QUIET)
    start = torch.full((1, 3, 48, 48), 0.5)
    kind = {"pyramid": PyramidCanvas, "fft": FourierCanvas}[canvas]
    ascent = clip.ascend(kind(start), guide, 8, progress=False)
    assert ascent.losses.item() < guide.loss(start).item() - 0.02
    picture = clip.generate(
        "a red apple", model, steps=1, size=(64, 40), tries=1, canvas=canvas, options=QUIET
    )
    assert picture.size == (64, 40)


def test_two_towers_draw_on_a_pyramid_unless_pixels_are_asked_for():
    model, start = clip.load_model("clipag-lite"), torch.full((1, 3, 64, 64), 0.5)
    assert isinstance(settings_for(model).canvas(start), PyramidCanvas)
    assert isinstance(settings_for(model, canvas="pixels").canvas(start), PixelCanvas)


def test_a_canvas_without_a_name_is_refused(model):
    message = "`canvas` is 'oil': choose from auto, pixels, pyramid"
    with pytest.raises(clip.ClipagError, match=message):
        clip.generate("a red apple", model, canvas="oil", options=QUIET)
