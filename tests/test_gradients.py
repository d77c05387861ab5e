"""Gradients of images, as code that was written for other CLIPs expects them."""

import pytest
import torch


@pytest.mark.parametrize("side", [48, 224])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_has_the_layout_of_its_image(model, side, layout):
    image = torch.rand(2, 3, side, side).contiguous(memory_format=layout).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.encode_image(image).sum(), image)
    if layout == torch.contiguous_format:
        assert gradient.is_contiguous()
        assert gradient.view(2, -1).norm(dim=1).min() > 0
    assert gradient.shape == image.shape


def test_torchattacks_l2_step_takes_it(model):
    torchattacks = pytest.importorskip("torchattacks")

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model.encode_image(images)

    attack = torchattacks.PGDL2(Classifier(), eps=0.5, alpha=0.2, steps=2)
    images = torch.rand(2, 3, 48, 48)
    attacked = attack(images, torch.tensor([0, 1]))
    assert 0 < (attacked - images).flatten(1).norm(dim=1).max() <= 0.5001
