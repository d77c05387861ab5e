"""Guide diffusers' pipelines by CLIPAG.

    guidance = ClipagGuidance(clip.load_model(), "a red apple")
    with guidance.applied_to(pipeline):
        picture = pipeline("a red apple").images[0]

In each step a pipeline predicts noise, and its scheduler makes the next latents of it. Between the
two the guidance computes the clean latents that the prediction stands for, decodes them, moves them
along the guide's gradient, and passes on the prediction that stands for the moved ones (He et al.,
"Manifold Preserving Guided Diffusion", ICLR 2024). No gradient flows through the denoiser, so a
step costs one pass of the decoder and of the guide.

The place is `scheduler.step`, since every pipeline calls it. `callback_on_step_end` and the guiders
of modular pipelines see either the latents or the prediction but not both, and unCLIP's pipelines
have neither.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from clipag_plugins.arguments import RunOptions
from clipag_plugins.base import ClipagModel
from clipag_plugins.defaults import GUIDANCE_STRENGTH
from clipag_plugins.errors import ClipagError
from clipag_plugins.guide import Guide
from clipag_plugins.integrations.denoising import move_length, moved
from clipag_plugins.targets import Prompt, prompt_targets
from clipag_plugins.views import MakeViews, one_view

SCHEDULERS = ("scheduler", "decoder_scheduler")  # where pipelines keep the one that draws
LEAST_NOISE = 1e-3  # a step with less noise is not guided: its prediction is divided by the noise


@dataclass(frozen=True)
class NoiseLevel:
    """How noisy a sample is: x_t = signal · x_0 + noise · ε.

    Attributes:
        signal: factor of the clean sample.
        noise: factor of the noise.
        prediction: what the denoiser predicts: "epsilon", "sample", "v_prediction", or "flow".
    """

    signal: float
    noise: float
    prediction: str

    def clean(self, sample: Tensor, prediction: Tensor) -> Tensor:
        """Return the clean sample that a prediction stands for."""
        if self.prediction == "sample":
            return prediction
        if self.prediction == "flow":
            return sample - self.noise * prediction
        if self.prediction == "v_prediction":
            signal, noise, whole = self._normalised()
            return signal * sample / whole - noise * prediction
        return (sample - self.noise * prediction) / self.signal

    def prediction_of(self, sample: Tensor, clean: Tensor) -> Tensor:
        """Return the prediction that stands for a clean sample."""
        if self.prediction == "sample":
            return clean
        if self.prediction == "flow":
            return (sample - clean) / self.noise
        if self.prediction == "v_prediction":
            signal, noise, whole = self._normalised()
            return (signal * sample / whole - clean) / noise
        return (sample - self.signal * clean) / self.noise

    def _normalised(self) -> tuple[float, float, float]:
        """Return the factors of a sample whose squares sum to 1, and what it is divided by."""
        whole = math.hypot(self.signal, self.noise)
        return self.signal / whole, self.noise / whole, whole


def noise_level(scheduler: Any, timestep: Any) -> NoiseLevel:
    """Return how noisy a scheduler's samples are at a timestep, before its step.

    Raises:
        ClipagError: the scheduler is of no kind that is known.
    """
    prediction = getattr(scheduler.config, "prediction_type", "epsilon")
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and hasattr(scheduler, "index_for_timestep"):
        index = scheduler.step_index
        if index is None:
            index = scheduler.begin_index
        if index is None:
            index = scheduler.index_for_timestep(timestep)
        sigma = float(sigmas[index])
        is_flow = getattr(scheduler.config, "use_flow_sigmas", False)
        if is_flow or "FlowMatch" in type(scheduler).__name__:
            return NoiseLevel(1 - sigma, sigma, "flow")
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            signal, noise = scheduler._sigma_to_alpha_sigma_t(sigmas[index])
            return NoiseLevel(float(signal), float(noise), prediction)
        return NoiseLevel(1.0, sigma, prediction)
    if hasattr(scheduler, "alphas_cumprod"):
        share = float(scheduler.alphas_cumprod[int(timestep)])
        return NoiseLevel(share**0.5, (1 - share) ** 0.5, prediction)
    raise ClipagError(
        f"{type(scheduler).__name__} tells neither sigmas nor alphas_cumprod: use another "
        "scheduler, such as DDIMScheduler."
    )


class ClipagGuidance:
    """Moves what a diffusers pipeline draws towards texts or other targets.

    Args:
        model: the CLIP that guides.
        prompts: a text, or one for each prompt of the pipeline, or lists of targets, such as
            `embedding_target` makes.
        scale: length of a move, as a share of the clean latents' standard deviation, times the
            ratio of noise to signal where that is above 1. Halve it when you double the steps.
        start, stop: shares of the steps between which the guidance applies.
        views: what the guide sees of an image; by default the image itself.
        seed: of the views.
        options: precision, memory and compilation of the guide.

    Raises:
        ClipagError: an argument is out of range, or a prompt is empty or too long.
    """

    def __init__(
        self,
        model: ClipagModel,
        prompts: str | Sequence[Prompt],
        *,
        scale: float = GUIDANCE_STRENGTH,
        start: float = 0.0,
        stop: float = 0.9,
        views: MakeViews = one_view,
        seed: int = 0,
        options: RunOptions = RunOptions(),
    ):
        if not scale >= 0:
            raise ClipagError(f"`scale` is {scale}: choose 0 or more.")
        if not 0 <= start < stop <= 1:
            raise ClipagError(f"`start` is {start} and `stop` {stop}: choose 0 ≤ start < stop ≤ 1.")
        self.model = model
        self.targets = prompt_targets(
            model, [prompts] if isinstance(prompts, str) else prompts, options.truncate
        )
        self.scale, self.start, self.stop = scale, start, stop
        self.views, self.seed, self.options = views, seed, options
        self.losses: list[float] = []
        self._guide: tuple[int, Guide] | None = None

    @contextmanager
    def applied_to(self, pipeline: Any, size: tuple[int, int] | None = None) -> Iterator[None]:
        """Guide what a pipeline draws within the block.

        `losses` then holds the mean loss of the clean images of each guided step.

        Args:
            pipeline: one of diffusers', with a scheduler, and with a VAE if it draws latents.
            size: (width, height) of its pictures in pixels, for pipelines whose latents are packed
                into tokens (Flux); by default they are square.

        Raises:
            ClipagError: the pipeline has no scheduler that draws.
        """
        names = [name for name in SCHEDULERS if getattr(pipeline, name, None) is not None]
        if not names:
            raise ClipagError(
                f"{type(pipeline).__name__} has no scheduler: guide a pipeline that draws by "
                "denoising."
            )
        scheduler = getattr(pipeline, names[0])
        step = scheduler.step
        self.losses, done = [], 0

        @wraps(step)
        def guided_step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any,
                        **options: Any) -> Any:  # fmt: skip
            nonlocal done
            share, done = done / max(1, len(scheduler.timesteps)), done + 1
            if self.start <= share < self.stop and self.scale:
                level = noise_level(scheduler, timestep)
                if level.noise > LEAST_NOISE:

                    def decode(latents: Tensor) -> Tensor:
                        return decoded(pipeline, latents, size)

                    model_output = self.guided(model_output, sample, level, decode)
            return step(model_output, timestep, sample, *args, **options)

        scheduler.step = guided_step
        try:
            yield
        finally:
            del scheduler.step  # the class' own method comes back

    def guided(
        self,
        prediction: Tensor,
        sample: Tensor,
        level: NoiseLevel,
        decode: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the prediction of moved clean latents.

        Args:
            prediction: of the denoiser, for the sample; after the sample's channels it may hold as
                many of variances, which stay as they are.
            sample: the noisy latents, (B, …).
            level: how noisy they are.
            decode: makes images (B, 3, H, W) in [0, 1] of clean latents.
        """
        channels = sample.shape[1]
        variances = prediction[:, channels:] if sample.ndim == 4 else prediction[:, :0]
        mean = prediction[:, :channels] if sample.ndim == 4 else prediction
        clean = level.clean(sample.float(), mean.float()).detach()
        length = move_length(self.scale, level.signal, level.noise)
        moved_latents, losses = moved(clean, decode, self._guide_of(len(sample)), length)
        self.losses.append(losses.mean().item())
        result = level.prediction_of(sample.float(), moved_latents).to(prediction.dtype)
        return torch.cat([result, variances], dim=1) if sample.ndim == 4 else result

    def _guide_of(self, count: int) -> Guide:
        """Return the guide of so many images, in the order of diffusers: prompt by prompt."""
        if self._guide is None or self._guide[0] != count:
            times, left = divmod(count, len(self.targets))
            if left:
                raise ClipagError(
                    f"There are {len(self.targets)} prompts for {count} pictures: give one, or one "
                    "for each prompt of the pipeline."
                )
            targets = [of_prompt for of_prompt in self.targets for _ in range(times)]
            seeds = [self.seed + number for number in range(count)]
            guide = Guide(self.model, targets, self.views, seeds=seeds, options=self.options)
            self._guide = (count, guide)
        return self._guide[1]


def decoded(pipeline: Any, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return the images (B, 3, H, W) in [0, 1] that a pipeline's decoder makes of clean latents.

    Args:
        pipeline: with a `vae` or a `movq`, or without one if the latents are pixels in [−1, 1].
        latents: (B, C, h, w), or packed into tokens (B, N, C) as Flux has them.
        size: (width, height) of the pictures in pixels, for packed latents.

    Raises:
        ClipagError: the latents need a decoder, and the pipeline has none; or they are packed, not
            square, and there is no `size`.
    """
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "movq", None)
    if vae is None:
        if latents.ndim != 4 or latents.shape[1] != 3:
            raise ClipagError(
                f"{type(pipeline).__name__} has no VAE, and its latents of shape "
                f"{tuple(latents.shape)} are no pixels: use a pipeline with a VAE."
            )
        return (latents / 2 + 0.5).clamp(0, 1)
    if latents.ndim == 3:
        latents = _unpacked(pipeline, latents, size)
    if hasattr(vae, "quantize"):
        images = vae.decode(latents.to(vae.dtype), force_not_quantize=True).sample
    else:
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        scaled = latents / vae.config.scaling_factor + shift
        images = vae.decode(scaled.to(vae.dtype)).sample
    pixels: Tensor = (images.float() / 2 + 0.5).clamp(0, 1)
    return pixels


def _unpacked(pipeline: Any, latents: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return latents packed into tokens as (B, C, h, w)."""
    factor = pipeline.vae_scale_factor
    if size is None:
        side = math.isqrt(latents.shape[1])
        if side**2 != latents.shape[1]:
            raise ClipagError("The pictures are not square: give their `size` to `applied_to`.")
        size = (side * 2 * factor, side * 2 * factor)
    width, height = size
    unpacked: Tensor = pipeline._unpack_latents(latents, height, width, factor)
    return unpacked
