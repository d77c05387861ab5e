"""Weights from elsewhere are hostile until proven."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import clipag_plugins as clip


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A real OpenCLIP ViT-B-32 state dict, with random weights."""
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    model = open_clip.create_model("ViT-B-32")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return model.eval(), path


@pytest.mark.slow
def test_open_clip_file_gives_open_clips_numbers(vit):
    original, path = vit
    model = clip.load_model(path)
    image, text = torch.randn(2, 3, 224, 224), clip.tokenize(["a dog", "a cat"])
    assert torch.allclose(model.encode_image(image), original.encode_image(image), atol=1e-4)
    assert torch.allclose(model.encode_text(text), original.encode_text(text), atol=1e-4)


@pytest.mark.slow
def test_training_checkpoint_as_pt(vit, tmp_path):
    original, _ = vit
    state = {f"module.{key}": value for key, value in original.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, tmp_path / "epoch_1.pt")
    image = torch.randn(1, 3, 224, 224)
    model = clip.load_model(tmp_path / "epoch_1.pt")
    assert torch.allclose(model.encode_image(image), original.encode_image(image), atol=1e-4)
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


@pytest.mark.slow
def test_truncated_file(vit, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(vit[1].read_bytes()[:100_000])
    with pytest.raises(clip.ClipagError, match="not a whole"):
        clip.load_model(path)


def test_other_architecture(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(clip.ClipagError, match="another architecture"):
        clip.load_model(path)


@pytest.mark.slow
def test_wrong_shape_and_nan(vit, tmp_path):
    state = load_file(vit[1])
    path = tmp_path / "changed.safetensors"
    save_file({**state, "visual.proj": torch.zeros(3, 3)}, path)
    with pytest.raises(clip.ClipagError, match=r"visual\.proj is \(3, 3\)"):
        clip.load_model(path)
    save_file({**state, "visual.proj": state["visual.proj"] * float("nan")}, path)
    with pytest.raises(clip.ClipagError, match="not finite"):
        clip.load_model(path)


def test_pickled_code_is_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    path = tmp_path / "hostile.pt"
    path.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    with pytest.raises(clip.ClipagError):
        clip.load_model(path)
    assert not marker.exists()


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
