"""Custom nodes for ComfyUI: diffusion models of random weights, and the tiny one that is trained.

`benchmarks.comfyui` puts this file into the `custom_nodes` of the ComfyUI that it starts. The
models are ComfyUI's own classes, as its loaders build them from a checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch

TINY_WIDTH = 32  # of the one token that the tiny UNet sees in place of a text
SMALL = {
    "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2],
    "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "context_dim": 64,
    "use_linear_in_transformer": False, "adm_in_channels": None,
}  # fmt: skip
SD15 = {
    "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768,
    "use_linear_in_transformer": False, "adm_in_channels": None,
}  # fmt: skip
SDXL = {
    "model_channels": 320, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048,
    "use_linear_in_transformer": True, "adm_in_channels": 2816, "num_classes": "sequential",
}  # fmt: skip
# What `benchmarks.comfyui_train` trains.
TINY = {
    "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2],
    "transformer_depth": [0, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1], "context_dim": TINY_WIDTH,
    "use_linear_in_transformer": False, "adm_in_channels": None,
}  # fmt: skip
SHARED = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "legacy": False,
    "use_spatial_transformer": True, "use_temporal_attention": False,
}  # fmt: skip
VAE_SHARED = {
    "double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "attn_resolutions": [],
    "dropout": 0.0,
}  # fmt: skip
SD_VAE = {"z_channels": 4, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}


class Tiny(comfy.supported_models.SD20):  # type: ignore[misc]
    """Stable Diffusion 2 as it predicts v."""

    def model_type(self, state_dict: Mapping[str, Any], prefix: str = "") -> Any:
        """Return what the UNet predicts."""
        return comfy.model_base.ModelType.V_PREDICTION


@dataclass(frozen=True)
class Shape:
    """The shape of a diffusion model.

    Attributes:
        unet: settings of the UNet.
        kind: ComfyUI's class of the model.
        vae: settings of the VAE.
    """

    unet: dict[str, Any]
    kind: type
    vae: dict[str, Any]


SIZES = {
    "small": Shape(SMALL, comfy.supported_models.SD15, {**SD_VAE, "ch": 32}),
    "SD 1.5": Shape(SD15, comfy.supported_models.SD15, SD_VAE),
    "SDXL": Shape(SDXL, comfy.supported_models.SDXL, SD_VAE),
    "tiny": Shape(
        TINY, Tiny, {"z_channels": 64, "ch": 32, "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1}
    ),
}
UNET, VAE = "model.diffusion_model.", "first_stage_model."  # prefixes in a checkpoint


def model_of(size: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model of ComfyUI, as its loaders make it. Its weights are not set."""
    shape = SIZES[size]
    config: Any = shape.kind({**SHARED, **shape.unet})
    config.set_inference_dtype(dtype, None)
    return config.get_model({}, device=comfy.model_management.unet_offload_device())


def vae_of(size: str, dtype: torch.dtype, weights: dict[str, torch.Tensor] | None = None) -> Any:
    """Return a VAE of ComfyUI, by default with random weights."""
    parameters = {"embed_dim": 4, "ddconfig": {**VAE_SHARED, **SIZES[size].vae}}
    if weights is None:
        module = comfy.ldm.models.autoencoder.AutoencoderKL(**parameters)
        for weight in module.parameters():
            weight.data.normal_(std=0.05 if weight.ndim > 1 else 0.5)
        weights = module.state_dict()
    return comfy.sd.VAE(weights, config={"params": parameters}, dtype=dtype)


def patcher_of(model: Any) -> Any:
    """Return a MODEL, as ComfyUI's loaders do."""
    return comfy.model_patcher.ModelPatcher(
        model,
        comfy.model_management.get_torch_device(),
        comfy.model_management.unet_offload_device(),
    )


class RandomDiffusion:
    """A diffusion model, its VAE, and two conditions, all of random weights."""

    CATEGORY = "CLIPAG/tests"
    RETURN_TYPES = ("MODEL", "VAE", "CONDITIONING", "CONDITIONING")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """Describe the inputs."""
        precisions = ["float32", "bfloat16", "float16"]
        return {"required": {"size": (list(SIZES), {}), "precision": (precisions, {})}}

    def run(self, size: str, precision: str) -> tuple[Any, ...]:
        """Return the models."""
        torch.manual_seed(0)
        dtype = getattr(torch, precision)
        model = model_of(size, dtype)
        for weight in model.parameters():  # as ComfyUI leaves them, they are not even set
            weight.data.normal_(std=0.02)
        width = SIZES[size].unet["context_dim"]
        conditions = [
            [[torch.randn(1, 77, width), {"pooled_output": torch.randn(1, 1280)}]]
            for _ in range(2)
        ]  # fmt: skip
        return (patcher_of(model), vae_of(size, dtype), *conditions)


class TinyDiffusion:
    """The model that `benchmarks.comfyui_train` has trained, and its two conditions: no words."""

    CATEGORY = "CLIPAG/tests"
    RETURN_TYPES = ("MODEL", "VAE", "CONDITIONING", "CONDITIONING")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """Describe the inputs."""
        return {"required": {"file": ("STRING", {"default": ""})}}

    def run(self, file: str) -> tuple[Any, ...]:
        """Return the models."""
        weights = comfy.utils.load_torch_file(file)
        model = model_of("tiny")
        model.diffusion_model.load_state_dict(_after(weights, UNET))
        blank = [[torch.zeros(1, 1, TINY_WIDTH), {}]]
        vae = vae_of("tiny", torch.float32, _after(weights, VAE))
        return (patcher_of(model), vae, blank, blank)


def _after(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the weights whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


NODE_CLASS_MAPPINGS = {
    "ClipagRandomDiffusion": RandomDiffusion,
    "ClipagTinyDiffusion": TinyDiffusion,
}
