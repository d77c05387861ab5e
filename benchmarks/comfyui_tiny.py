"""A custom node for ComfyUI: a latent diffusion model of random weights, small or of full size.

`benchmarks.comfyui` puts this file into the `custom_nodes` of the ComfyUI that it starts. The
models are ComfyUI's own classes, as its loaders build them from a checkpoint.
"""

from typing import Any

import comfy.ldm.models.autoencoder
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch

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
# Settings of the UNet, ComfyUI's class of the model, and the channels of its VAE.
SIZES: dict[str, tuple[dict[str, Any], str, int]] = {
    "small": (SMALL, "SD15", 32),
    "SD 1.5": (SD15, "SD15", 128),
    "SDXL": (SDXL, "SDXL", 128),
}
SHARED = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "legacy": False,
    "use_spatial_transformer": True, "use_temporal_attention": False,
}  # fmt: skip


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
        unet, kind, channels = SIZES[size]
        dtype = getattr(torch, precision)
        config = getattr(comfy.supported_models, kind)({**SHARED, **unet})
        config.set_inference_dtype(dtype, None)
        device = comfy.model_management.get_torch_device()
        offload = comfy.model_management.unet_offload_device()
        model = config.get_model({}, device=offload)
        with torch.no_grad():
            for weight in model.parameters():  # as ComfyUI leaves them, they are not even set
                weight.copy_(torch.randn_like(weight) * 0.02)
        parameters = {
            "embed_dim": 4,
            "ddconfig": {
                "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3,
                "ch": channels, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
                "attn_resolutions": [], "dropout": 0.0,
            },
        }  # fmt: skip
        module = comfy.ldm.models.autoencoder.AutoencoderKL(**parameters)
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(torch.randn_like(weight) * (0.05 if weight.ndim > 1 else 0.5))
        vae = comfy.sd.VAE(module.state_dict(), config={"params": parameters}, dtype=dtype)
        patcher = comfy.model_patcher.ModelPatcher(model, device, offload)
        width = unet["context_dim"]
        conditions = [
            [[torch.randn(1, 77, width), {"pooled_output": torch.randn(1, 1280)}]]
            for _ in range(2)
        ]  # fmt: skip
        return (patcher, vae, *conditions)


NODE_CLASS_MAPPINGS = {"ClipagRandomDiffusion": RandomDiffusion}
