"""The node that guides diffusion: CLIPAG's gradient in each step of any latent model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipag_plugins.arguments import MOST_VIEWS
from clipag_plugins.defaults import GUIDANCE_STRENGTH
from clipag_plugins.errors import ClipagError
from clipag_plugins.integrations.comfyui.drawing import AS_SUITS, CATEGORY, LOAD, MODEL, TARGET
from clipag_plugins.integrations.comfyui.goals import Part, encoded
from clipag_plugins.integrations.comfyui.host import Managed, need, thaw, with_gradients
from clipag_plugins.integrations.comfyui.widgets import (
    Input,
    inputs_of,
    integer,
    number,
    seed_widget,
    socket,
)

if TYPE_CHECKING:
    from torch import Tensor

    from clipag_plugins.base import ClipagModel


@dataclass(frozen=True)
class GuidanceWidgets:
    """The widgets of `GuideDiffusion`."""

    strength: float = number(
        GUIDANCE_STRENGTH,
        0,
        10,
        "How strongly the guide pulls: the length of each move, as a share of the latent's "
        "deviation, times the noise where that is above 1. Halve it when you double the steps.",
    )
    start_percent: float = number(0.0, 0, 1, "Share of the schedule before the first guided step.")
    end_percent: float = number(1.0, 0, 1, "Share of the schedule after which no step is guided.")
    every: int = integer(1, 1, 1000, "Guide each n-th step only, which costs less.")
    views: int = integer(0, 0, MOST_VIEWS, f"Augmented views for each guided step. {AS_SUITS}")
    view_seed: int = seed_widget()


class GuideDiffusion:
    """Guide a latent diffusion model."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Guide a diffusion model: each denoising step's predicted clean picture moves along "
        "CLIPAG's gradient. Connect the result to a sampler in place of the model."
    )
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The diffusion model, guided. Connect it to a sampler.",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Input]]:
        """Describe the inputs."""
        sockets = {
            "diffusion": socket("MODEL", "The diffusion model."),
            "vae": socket("VAE", "Its VAE."),
            "model": MODEL,
            "target": TARGET,
        }
        return {"required": {**sockets, **inputs_of(GuidanceWidgets)}}

    @with_gradients
    def run(
        self,
        diffusion: Any,
        vae: Any,
        model: "Managed[ClipagModel]",
        target: Sequence[Part],
        **widgets: Any,
    ) -> tuple[Any]:
        """Return a copy of the diffusion model that is guided."""
        chosen = GuidanceWidgets(**widgets)
        need(vae, "vae", "connect the VAE of the diffusion model")
        need(model, "model", LOAD)
        if chosen.start_percent > chosen.end_percent:
            raise ClipagError(
                f"`start_percent` is {chosen.start_percent:g} and `end_percent` "
                f"{chosen.end_percent:g}: the start must come first."
            )
        encoded(target, model.ready())  # reports a bad target at this node, not at the sampler
        guided = need(diffusion, "diffusion", "connect a diffusion model").clone()
        _check_latents(guided, vae)
        guidance = Guidance(model, vae, target, chosen)
        guided.set_model_sampler_post_cfg_function(guidance)
        if model.patcher is not None:
            # ComfyUI loads them together with the diffusion model, before it samples.
            guided.set_additional_models("clipag", [model.patcher, vae.patcher])
        return (guided,)


def _check_latents(diffusion: Any, vae: Any) -> None:
    """Raise ClipagError unless a VAE decodes pictures from the latents of a diffusion model."""
    latents = diffusion.get_model_object("latent_format")
    if latents.latent_dimensions != 2:
        raise ClipagError(
            "`diffusion` draws no pictures but videos or sound, which CLIP cannot see: connect a "
            "model of pictures."
        )
    if latents.latent_channels != vae.latent_channels:
        raise ClipagError(
            f"`vae` decodes latents of {vae.latent_channels} channels, and those of `diffusion` "
            f"have {latents.latent_channels}: connect the VAE of the diffusion model."
        )


class Guidance:
    """What ComfyUI's samplers call after each prediction of the clean latent."""

    def __init__(
        self,
        model: "Managed[ClipagModel]",
        vae: Any,
        target: Sequence[Part],
        widgets: GuidanceWidgets,
    ):
        self.model = model
        self.vae = vae
        self.target = target
        self.widgets = widgets

    @with_gradients
    def __call__(self, arguments: dict[str, Any]) -> "Tensor":
        """Return the predicted clean latents, (B, C, h, w), moved if this step is guided."""
        latents: Tensor = arguments["denoised"]
        step = _step(arguments)
        sampling = arguments["model"].model_sampling
        sigma = float(arguments["sigma"].max())
        first, last = (
            float(sampling.percent_to_sigma(share))
            for share in (self.widgets.start_percent, self.widgets.end_percent)
        )
        if not last <= sigma <= first or step % self.widgets.every or not self.widgets.strength:
            return latents
        level = noise_level(sampling, sigma)
        return self._moved(latents, step, level, arguments["model"].process_latent_out)

    def _moved(
        self,
        latents: "Tensor",
        step: int,
        level: tuple[float, float],
        process_out: Callable[["Tensor"], "Tensor"],
    ) -> "Tensor":
        """Return latents moved along the gradient of a guide with the views of this step."""
        import torch

        from clipag_plugins.guide import Guide
        from clipag_plugins.integrations.denoising import move_length, moved
        from clipag_plugins.sampler import settings_for
        from clipag_plugins.streams import draw_from

        decoder, clip = self.vae.first_stage_model, self.model.loaded()
        thaw(decoder)

        def decode(latents: "Tensor") -> "Tensor":
            # Not `vae.decode`: it splits, moves and copies, and has no gradient.
            of_vae = process_out(latents).to(self.vae.device, self.vae.vae_dtype)
            pictures: Tensor = self.vae.process_output(decoder.decode(of_vae))
            return pictures

        # A guide for each step: between two runs nothing of it stays in memory.
        guide = Guide(
            clip,
            [encoded(self.target, clip)] * len(latents),
            settings_for(clip, views=self.widgets.views or None).views,
            options=self.model.options,
        )
        with draw_from(torch.Generator().manual_seed(self.widgets.view_seed + step)):
            length = move_length(self.widgets.strength, *level)
            return moved(latents, decode, guide, length)[0]


def noise_level(sampling: Any, sigma: float) -> tuple[float, float]:
    """Return the factors of the clean latents and of the noise in the latents that are denoised.

    Args:
        sampling: ComfyUI's `model_sampling`.
        sigma: of the step. That of flow models is at most 1, and the latents' share is 1 − sigma.
    """
    return (1.0 if float(sampling.sigma_max) > 1 else 1 - sigma), sigma


def _step(arguments: dict[str, Any]) -> int:
    """Return the number of the sampler's step."""
    sigmas = arguments["model_options"]["transformer_options"]["sample_sigmas"]
    return int((sigmas - arguments["sigma"].max().to(sigmas)).abs().argmin())
