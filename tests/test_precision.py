"""The number format: what "auto" chooses depends on the hardware alone."""

import pytest
import torch
from torch.nn import functional as F

import clipag_plugins as clip
from clipag_plugins import bench, packed, precision
from clipag_plugins.transformer import attend


def test_auto_on_a_cpu_is_bfloat16_exactly_where_there_are_instructions_for_it(model):
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("amx_tile"))
    if flags:
        expected = torch.bfloat16 if native else torch.float32
        assert precision.fastest(torch.device("cpu")) == expected
    guides = [clip.Guide(model, [[clip.text_target(model, "a cat")]]) for _ in range(3)]
    assert len({guide.dtype for guide in guides}) == 1


def test_other_devices_compute_in_float32():
    assert precision.fastest(torch.device("meta")) == torch.float32


def test_a_tower_that_its_user_converted_stays_as_it_is(model):
    half = torch.nn.Linear(2, 2).half()
    assert precision.choose("auto", half) == torch.float16
    assert precision.choose("float32", half) == torch.float32


def test_bench_says_if_another_precision_is_faster():
    rates = {"float32": 100.0, "bfloat16": 450.0, "float16": 90.0}
    assert "bfloat16 computes 4.5 times as fast" in bench.advice_on_precision(rates, "float32")
    assert bench.advice_on_precision(rates, "bfloat16") == ""


def test_float16_keeps_the_gradient_of_one_view_among_thousands(model):
    picture = torch.rand(1, 3, 48, 48).requires_grad_(True)
    target = clip.text_target(model, "a cat", weight=1 / 4096)
    gradients = []
    for name in ("float32", "float16"):
        guide = clip.Guide(model, [[target]], options=clip.RunOptions(name))
        gradients += torch.autograd.grad(guide.loss(picture).sum(), picture)
    expected, gradient = (each.double().flatten() for each in gradients)
    assert torch.cosine_similarity(expected, gradient, dim=0) > 0.999
    assert (gradient - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize(
    ("queries", "keys", "masked"), [(9, 9, False), (9, 9, True), (1, 9, False)]
)
def test_attention_in_bfloat16_is_that_in_float64(queries, keys, masked):
    shapes = ((queries, 2, 32), (keys, 2, 32), (keys, 2, 32))
    exact = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    rough = [x.detach().bfloat16().requires_grad_() for x in exact]
    mask = torch.full((queries, keys), -torch.inf).triu(1) if masked else None
    q, k, v = (x.unflatten(2, (4, 8)).permute(1, 2, 0, 3) for x in exact)
    expected = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.double())
    expected = expected.permute(2, 0, 1, 3).flatten(2)
    result = attend(*rough, 4, None if mask is None else mask.bfloat16())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, atol=0.04, rtol=0.02)
    upstream = torch.randn(queries, 2, 32)
    gradients = torch.autograd.grad(expected, exact, upstream.double())
    roughly = torch.autograd.grad(result, rough, upstream.bfloat16())
    for ours, theirs in zip(roughly, gradients, strict=True):
        assert torch.cosine_similarity(ours.double().flatten(), theirs.flatten(), dim=0) > 0.999


def test_packed_weights_give_the_same_gradients_of_any_order():
    plain = packed.Linear(24, 40).bfloat16().requires_grad_(False)
    fast = precision.in_precision(packed.Linear(24, 40), torch.bfloat16)
    fast.load_state_dict(plain.state_dict())
    results = []
    for layer in (plain, fast):
        torch.manual_seed(0)
        x = torch.randn(3, 5, 24).bfloat16().requires_grad_()
        y = layer(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results += [(y, gradient, *torch.autograd.grad(gradient.square().sum(), x))]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    names = [type(node).__name__ for node in (y.grad_fn, plain(x).grad_fn)]
    has_instructions = precision.fastest(torch.device("cpu")) == torch.bfloat16
    assert not has_instructions or (names[0].startswith("_Product") and names[1] != names[0])


def test_the_gradient_in_bfloat16_points_where_that_in_float32_does():
    torch.manual_seed(0)
    model = clip.clip.model.CLIP(64, 64, 3, 128, 16, 77, 100, 64, 1, 1).eval().requires_grad_(False)
    pixels = torch.randn(4, 3, 64, 64)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        tower = precision.in_precision(model.visual, dtype)
        leaf = pixels.clone().requires_grad_()
        tower(leaf.to(dtype)).float().square().sum().backward()
        gradients.append(leaf.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999
