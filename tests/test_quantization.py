import pytest
import torch
from safetensors.torch import load_file, save_file

import clipag_plugins as clip
from clipag_plugins import embedded, mixture
from clipag_plugins.finetune.embedded import export
from clipag_plugins.quantization import dequantize, quantize


def test_values_move_by_less_than_a_level_of_their_row():
    generator = torch.Generator().manual_seed(0)
    magnitudes = torch.tensor([1e-4, 1.0, 1e3])
    kernels = torch.randn(3, 4, 5, 5, generator=generator) * magnitudes.view(3, 1, 1, 1)
    state = {"conv.weight": kernels, "conv.bias": torch.randn(3, generator=generator)}
    small = quantize(state)
    assert small["conv.weight"].dtype == torch.int8
    back = dequantize(small, "weights")
    assert back.keys() == state.keys()
    errors = (back["conv.weight"] - kernels).abs().flatten(1).amax(1)
    # Half a level, what float16 rounds of the scale (2 ** -11 of it, 127 times), and of the least.
    bound = kernels.abs().flatten(1).amax(1) / 127 * (0.5 + 127 * 2**-11) + 127 * 2**-25
    assert (errors <= bound).all()
    assert torch.equal(back["conv.bias"], state["conv.bias"].half())


def test_rows_of_zeros_stay_zeros():
    rows = torch.zeros(2, 3)
    rows[1] = torch.tensor([-1.0, 0.5, 1.0])
    back = dequantize(quantize({"rows": rows}), "rows")["rows"]
    torch.testing.assert_close(back, rows, atol=1 / 200, rtol=0)
    assert not back[0].any()


def test_other_weights_are_left_as_they_are():
    state = {"norm.scale": torch.ones(3), "weight": torch.ones(2, 3).half()}
    back = dequantize(state, "weights")
    assert back.keys() == state.keys() and all(back[key] is state[key] for key in state)


def test_the_embedded_files_are_those_that_the_export_writes_of_their_weights(tmp_path):
    """So quantizing what was quantized changes nothing."""
    config = embedded.read_config()
    for entry in (config["models"]["clipag-mini"]["image"], config["gmm"]):
        weights = embedded.read_weights(entry)
        assert export.write_8_bit(weights, tmp_path / entry["name"]) == entry


def test_scales_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "odd.safetensors"
    state = quantize({"means": torch.rand(2, 768), "factors": torch.rand(2, 768, 3)})
    save_file(state, path)
    assert mixture.load(path).factors.shape == (2, 768, 3)
    for scales in (torch.ones(1), torch.ones(3), torch.ones(2, 1), torch.tensor(1.0)):
        save_file({**load_file(path), "means.scale": scales}, tmp_path / "worse.safetensors")
        with pytest.raises(clip.ClipagError, match=r"worse\.safetensors is damaged: means"):
            mixture.load(tmp_path / "worse.safetensors")
