"""Guidance in diffusers' pipelines: tiny random ones, built on the spot."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import clipag_plugins as clip
from clipag_plugins.base import embed_images
from clipag_plugins.integrations.diffusion import (
    ClipagGuidance,
    NoiseLevel,
    decoded,
    noise_level,
)

QUIET = clip.RunOptions(progress=False)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def pixels_pipeline(diffusers):
    """An unconditional pipeline that denoises pixels."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def latents_pipeline(diffusers):
    """A Stable Diffusion pipeline; without a text encoder, so that prompts are embeddings."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae, None, None, unet, diffusers.DDIMScheduler(clip_sample=False), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_latents(pipeline, count=2):
    prompt = torch.zeros(count, 4, 8)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(
        prompt_embeds=prompt, negative_prompt_embeds=prompt, num_inference_steps=4,
        generator=generator, output_type="pt",
    ).images  # fmt: skip
    return images.float()


def drawn_pixels(pipeline):
    generator = torch.Generator().manual_seed(0)
    images = pipeline(2, generator=generator, num_inference_steps=4, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow"])
@pytest.mark.parametrize(("signal", "noise"), [(0.8, 0.6), (1.0, 7.0)])
def test_a_prediction_is_that_of_its_clean_sample(prediction, signal, noise):
    """With the true noise, every kind of prediction stands for the true clean sample."""
    clean, epsilon = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    level = NoiseLevel(signal, noise, prediction)
    sample = (1 - noise if prediction == "flow" else signal) * clean + noise * epsilon
    whole = (signal**2 + noise**2) ** 0.5
    true = {
        "epsilon": epsilon,
        "sample": clean,
        "v_prediction": (signal * epsilon - noise * clean) / whole,
        "flow": epsilon - clean,
    }[prediction]
    torch.testing.assert_close(level.clean(sample, true), clean)
    torch.testing.assert_close(level.prediction_of(sample, clean), true)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "FlowMatchEulerDiscreteScheduler",
    ],
)
def test_the_noise_level_of_schedulers(diffusers, name):
    """Noise that a scheduler adds to a sample is recovered by the level of the timestep."""
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(5)
    timestep = scheduler.timesteps[2:3]
    level = noise_level(scheduler, timestep[0])
    clean, epsilon = torch.randn(2, 1, 4, 8, 8)
    add = scheduler.scale_noise if "FlowMatch" in name else None
    sample = add(clean, timestep, epsilon) if add else scheduler.add_noise(clean, epsilon, timestep)
    prediction = epsilon - clean if level.prediction == "flow" else epsilon
    torch.testing.assert_close(level.clean(sample, prediction), clean, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_guided_pictures_are_nearer_to_the_text(model, request, kind):
    pipeline = request.getfixturevalue(f"{kind}_pipeline")
    draw = drawn_pixels if kind == "pixels" else drawn_latents
    plain = draw(pipeline)
    guidance = ClipagGuidance(model, "a red apple", scale=0.5, stop=1.0, options=QUIET)
    with guidance.applied_to(pipeline):
        guided = draw(pipeline)
    goal = clip.text_target(model, "a red apple").embedding
    before, after = (embed_images(model, images) @ goal for images in (plain, guided))
    assert (after > before).all() and len(guidance.losses) == 4
    torch.testing.assert_close(draw(pipeline), plain)  # the scheduler is as it was
    with ClipagGuidance(model, "a red apple", scale=0.0).applied_to(pipeline):
        torch.testing.assert_close(draw(pipeline), plain)


@pytest.mark.slow
def test_each_picture_has_the_target_of_its_prompt(model, latents_pipeline):
    picture = torch.rand(3, 32, 32)
    targets = [[clip.image_target(model, picture)], [clip.text_target(model, "a blue sea")]]
    with ClipagGuidance(model, targets, scale=0.5, options=QUIET).applied_to(latents_pipeline):
        both = drawn_latents(latents_pipeline)
    with ClipagGuidance(model, targets[::-1], scale=0.5, options=QUIET).applied_to(
        latents_pipeline
    ):
        swapped = drawn_latents(latents_pipeline)
    goals = torch.stack([target.embedding for (target,) in targets])
    z, z_swapped = embed_images(model, both), embed_images(model, swapped)
    assert ((z - z_swapped) @ (goals[0] - goals[1]) * torch.tensor([1, -1]) > 0).all()


@pytest.mark.parametrize(
    ("level", "times"),
    [
        (NoiseLevel(1.0, 0.5, "sample"), 1),  # as far as without noise
        (NoiseLevel(1.0, 7.0, "sample"), 7),
        (NoiseLevel(0.28, 0.96, "sample"), 0.96 / 0.28),
        (NoiseLevel(0.25, 0.75, "flow"), 3),
        (NoiseLevel(0.0, 1.0, "flow"), 15),  # from noise alone
    ],
)
def test_moves_grow_with_the_noise(model, level, times):
    """As ComfyUI's node moves latents: `test_comfyui.py` has the same lengths."""
    guidance = ClipagGuidance(model, "a fox", scale=0.02, options=QUIET)
    sample, prediction = torch.randn(2, 2, 3, 32, 32)
    guided = guidance.guided(prediction, sample, level, lambda x: (x / 2 + 0.5).clamp(0, 1))
    clean = level.clean(sample, prediction)
    length = (level.clean(sample, guided) - clean).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(length, 0.02 * times * clean.std(dim=(1, 2, 3)), rtol=1e-3, atol=0)


def test_variances_and_packed_latents_are_left_in_shape(model):
    guidance = ClipagGuidance(model, "a fox", options=QUIET)
    level = NoiseLevel(0.8, 0.6, "epsilon")
    sample, prediction = torch.randn(1, 3, 32, 32), torch.randn(1, 6, 32, 32)
    guided = guidance.guided(prediction, sample, level, lambda x: (x / 2 + 0.5).clamp(0, 1))
    assert torch.equal(guided[:, 3:], prediction[:, 3:])
    assert not torch.equal(guided[:, :3], prediction[:, :3])
    pipeline = SimpleNamespace(
        vae_scale_factor=8,
        vae=SimpleNamespace(
            config=SimpleNamespace(scaling_factor=2.0, shift_factor=0.5),
            dtype=torch.float32,
            decode=lambda latents: SimpleNamespace(sample=latents),
        ),
        _unpack_latents=lambda latents, height, width, factor: latents.view(1, 3, 4, 4),
    )
    packed = torch.rand(1, 4, 12)
    expected = ((packed.view(1, 3, 4, 4) / 2 + 0.5) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded(pipeline, packed), expected)
    with pytest.raises(clip.ClipagError, match="not square"):
        decoded(pipeline, torch.rand(1, 5, 12))


def test_bad_input_is_one_sentence(model):
    for options, message in (
        ({"scale": -1}, "`scale` is -1"),
        ({"start": 0.5, "stop": 0.5}, "`start` is 0.5"),
    ):
        with pytest.raises(clip.ClipagError, match=message):
            ClipagGuidance(model, "a fox", **options)
    with pytest.raises(clip.ClipagError, match="has no VAE"):
        decoded(SimpleNamespace(vae=None), torch.rand(1, 4, 8, 8))
    guidance = ClipagGuidance(model, "a fox")
    with pytest.raises(clip.ClipagError, match="has no scheduler"), guidance.applied_to(object()):
        pass
    scheduler = SimpleNamespace(config=SimpleNamespace())
    with pytest.raises(clip.ClipagError, match="neither sigmas nor alphas_cumprod"):
        noise_level(scheduler, 3)
    two = ClipagGuidance(model, ["a fox", "a bus"], options=QUIET)
    with pytest.raises(clip.ClipagError, match="2 prompts for 3 pictures"):
        two.guided(torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16),
                   NoiseLevel(0.8, 0.6, "epsilon"), lambda x: x)  # fmt: skip


@pytest.mark.slow
def test_the_example_runs(diffusers, tmp_path, pixels_pipeline):
    pixels_pipeline.save_pretrained(tmp_path / "pipeline")
    example = Path(__file__).parent.parent / "examples" / "diffusers_guidance.py"
    command = [sys.executable, example, tmp_path / "pipeline", "a red apple", "--steps", "2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "guided.png").is_file() and (tmp_path / "plain.png").is_file()
