"""The number format: what "auto" chooses depends on the hardware alone."""

import torch

import clipag_plugins as clip
from clipag_plugins import bench, precision


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
