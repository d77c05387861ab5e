import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import clipag_plugins as clip
from clipag_plugins import mixture
from clipag_plugins.sampler import sample, settings_for


def test_samples_have_the_moments_of_the_mixture():
    gaussians = mixture.load()
    samples = gaussians.sample(200, torch.Generator().manual_seed(0))
    samples = samples.view(len(gaussians.means), 200, -1)
    # Clamping to [0, 1] pulls in the tails, so the means agree only roughly.
    assert (samples.mean(1) - gaussians.means).abs().mean() < 0.03


@pytest.mark.slow
def test_a_mixture_of_the_users_own_pictures(model, tmp_path):
    folder = tmp_path / "pictures" / "blue"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (20, 20), (0, 0, 200 + number)).save(folder / f"{number}.png")
    module = "clipag_plugins.finetune.embedded.starts"
    command = [sys.executable, "-m", module, "--folder", "pictures", "--out", "blue.safetensors"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    images_by_step = []
    sample(
        ["apple"],
        model,
        settings_for(model, steps=1, views=1),
        size=32,
        init=tmp_path / "blue.safetensors",
        callback=lambda step, images, losses: images_by_step.append(images),
        options=clip.RunOptions(progress=False),
    )
    red, _, blue = images_by_step[0].mean(dim=(0, 2, 3)).tolist()
    assert blue == pytest.approx(201 / 255, abs=0.02) and red < 0.02


def test_damaged_mixtures_are_refused(model, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(clip.ClipagError, match=r"cut\.safetensors"):
        sample(["apple"], model, init=tmp_path / "cut.safetensors")
    means, factors = torch.zeros(2, 768), torch.zeros(2, 768, 3)
    for bad_means, bad_factors in (
        (torch.tensor(1.0), factors),
        (means[:0], factors[:0]),
        (means, factors[:1]),
        (means, factors[..., 0]),
        (means * torch.nan, factors),
    ):
        tensors = {"means": bad_means, "factors": bad_factors.contiguous()}
        save_file(tensors, tmp_path / "odd.safetensors")
        with pytest.raises(clip.ClipagError, match=r"odd\.safetensors"):
            mixture.load(tmp_path / "odd.safetensors")
