"""Weights files: read as open_clip reads them, or refused with a clear message."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import clipag_plugins as clip

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small open_clip model and its file."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    model = open_clip.CLIP(**SMALL).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return model, path


def assert_same(ours, theirs, side):
    """Compare embeddings in float64: kernels of float32 differ between processors."""
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    image = torch.randn(2, 3, side, side, dtype=torch.float64)
    text = clip.tokenize(["a dog", "a red apple on a table"])
    assert torch.allclose(ours.encode_image(image), theirs.encode_image(image), atol=1e-6)
    assert torch.allclose(ours.encode_text(text), theirs.encode_text(text), atol=1e-6)


@pytest.mark.slow
def test_a_full_size_vit_gives_open_clips_numbers(tmp_path):
    """With several heads and the usual depth, unlike the small models of the other tests."""
    original = open_clip.create_model("ViT-B-32").eval()
    save_file(
        {k: v.contiguous() for k, v in original.state_dict().items()}, tmp_path / "v.safetensors"
    )
    assert_same(clip.load_model(tmp_path / "v.safetensors"), original, 224)


@pytest.mark.slow
def test_training_checkpoint_as_pt(small, tmp_path):
    original, _ = small
    state = {f"module.{key}": value for key, value in original.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, tmp_path / "epoch_1.pt")
    model = clip.load_model(tmp_path / "epoch_1.pt")
    assert_same(model, original, 32)
    picture = clip.generate(
        "a dog",
        model,
        steps=1,
        size=64,
        views=2,
        init="noise",
        options=clip.RunOptions(progress=False),
    )
    assert picture.size == (64, 64)


def test_unknown_name_lists_the_known():
    with pytest.raises(clip.ClipagError, match="clipag-mini, clip-mini"):
        clip.load_model("clipag-maxi")


def test_model_to_be_fetched_says_from_where(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(clip.ClipagError, match="10446026"):
        clip.load_model("ViT-B/32")


def test_truncated_file(small, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(small[1].read_bytes()[:100_000])
    with pytest.raises(clip.ClipagError, match="not a complete"):
        clip.load_model(path)


def test_other_architecture(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(clip.ClipagError, match="another architecture"):
        clip.load_model(path)


def test_wrong_shape_and_nan(small, tmp_path):
    state = load_file(small[1])
    path = tmp_path / "changed.safetensors"
    save_file({**state, "visual.proj": torch.zeros(3, 3)}, path)
    with pytest.raises(clip.ClipagError, match=r"visual\.proj is \(3, 3\)"):
        clip.load_model(path)
    save_file({**state, "visual.proj": state["visual.proj"] * float("nan")}, path)
    with pytest.raises(clip.ClipagError, match="not finite"):
        clip.load_model(path)


@pytest.mark.slow
def test_a_flipped_bit_in_the_embedded_weights_is_noticed(tmp_path):
    package = Path(clip.__file__).parent
    shutil.copytree(package, tmp_path / "clipag_plugins")
    path = tmp_path / "clipag_plugins" / "weights" / "clipag-mini.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    command = [sys.executable, "-m", "clipag_plugins", "generate", "apple", "--steps", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "damaged" in result.stderr
    assert not list(tmp_path.glob("*.png"))
