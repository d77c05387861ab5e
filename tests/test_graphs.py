"""A tower that is recorded as a CUDA graph gives the gradients of the tower itself."""

import copy

import pytest
import torch

import clipag_plugins as clip
from clipag_plugins.graphs import CALLS_BEFORE_RECORDING, Replayed


def gradients(encode, batches):
    """Return the gradient of the embeddings' squares by each batch."""
    leaves = [batch.detach().requires_grad_(True) for batch in batches]
    return [torch.autograd.grad(encode(leaf).square().sum(), leaf)[0].clone() for leaf in leaves]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_replay_sees_other_views_and_hooks(model, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    tower = copy.deepcopy(model.visual).to(device)
    replayed = Replayed(tower)
    batches = [torch.randn(2, 3, 48, 48, device=device) for _ in range(CALLS_BEFORE_RECORDING + 3)]
    for got, expected in zip(gradients(replayed, batches), gradients(tower, batches), strict=True):
        torch.testing.assert_close(got, expected)
    assert len(replayed._graphs) == (device == "cuda")
    seen = []
    tower.tower.head.register_forward_hook(lambda *_: seen.append(True))
    gradients(replayed, batches[:1])
    assert seen


def test_a_guide_goes_on_the_same_after_the_recording(model):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    model = copy.deepcopy(model).to("cuda")
    target = clip.text_target(model, "an apple")
    options = clip.RunOptions("float32")
    guide = clip.Guide(model, [[target]], clip.Views(2, 2), seeds=[0], options=options)
    plain = clip.Guide(model, [[target]], clip.Views(2, 2), seeds=[0], options=options)
    plain._encode = plain._tower
    for _ in range(CALLS_BEFORE_RECORDING + 3):
        picture = torch.rand(1, 3, 48, 48, device="cuda").requires_grad_(True)
        got, expected = (
            torch.autograd.grad(each.loss(picture).sum(), picture)[0] for each in (guide, plain)
        )
        torch.testing.assert_close(got, expected)
