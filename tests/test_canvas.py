import torch

import clipag_plugins as clip
from clipag_plugins.canvas import NormalizedGradient, ThresholdedCanvas


def test_a_normalized_step_has_its_length():
    pixels = torch.nn.Parameter(torch.rand(2, 3, 8, 8))
    before = pixels.detach().clone()
    (pixels * torch.randn_like(pixels)).sum().backward()
    NormalizedGradient([pixels], 0.7).step()
    lengths = (pixels - before).flatten(1).square().mean(dim=1).sqrt()
    assert torch.allclose(lengths, torch.full((2,), 0.7), atol=1e-5)


def test_the_notebooks_canvas_treats_images_apart(model64):
    start = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    targets = [[clip.text_target(model64, text)] for text in ("apple", "castle")]

    def drawn(which):
        canvas = ThresholdedCanvas(start[which])
        return clip.ascend(canvas, clip.Guide(model64, targets[which]), 3, progress=False).images

    torch.testing.assert_close(drawn(slice(0, 2))[1:], drawn(slice(1, 2)), atol=1e-5, rtol=0)


def test_a_dynamic_threshold_brings_pixels_back():
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
