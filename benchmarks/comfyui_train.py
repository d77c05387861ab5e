"""Train a tiny latent diffusion model of emoji and clip art, in Stable Diffusion's own classes.

    python -m benchmarks.comfyui_train COMFYUI_DIR --work build/weights --out tiny.safetensors

Run it with the Python that runs ComfyUI. `--work` is the folder of the corpus. The model learns
what pictures look like and no words: what a guided picture shows comes from the guide alone. It
sees the pictures of the training split only.

Its VAE is `vqgan-mini` without the codebook. The 64 channels of that latent have four principal
components, and these are the VAE's four channels: the layers before and after the latent project
onto them. So it is an AutoencoderKL of Stable Diffusion's layout, made without training. The UNet
has Stable Diffusion's blocks, predicts v as Stable Diffusion 2 does, and sees one token that says
nothing. A run that is interrupted goes on from its last checkpoint.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from clipag_plugins.files import write_beside
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.embedded.image_tower import Pictures
from clipag_plugins.integrations.vqgan import load_vqgan
from clipag_plugins.precision import fastest

from .comfyui_inside import start_comfyui

CHANNELS = 4
SCALE = 0.18215  # Stable Diffusion's factor between the VAE's latents and the UNet's
BATCH, STEPS, RATE, WARM_UP = 32, 1000, 1e-3, 100
EVERY = 100  # steps between checkpoints
NO_VARIANCE = -30.0  # logarithm of the variance of a latent: it is not random


def fast_cpu() -> torch.autocast:
    """Compute in the type that is fastest on this CPU."""
    dtype = fastest(torch.device("cpu"))
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


@torch.no_grad()
def raw_latents(vqgan: Any, images: Tensor) -> Tensor:
    """Return the VQGAN's latents (B, 64, h, w) of images (B, 3, H, W) in [0, 1], not rounded."""
    latents = []
    with fast_cpu():
        for chunk in images.split(32):
            latents.append(vqgan.quant_conv(vqgan.encoder(chunk * 2 - 1)).float())
    return torch.cat(latents)


def components(latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (64,), directions (4, 64) and deviations (4,) of latents (B, 64, h, w)."""
    flat = latents.movedim(1, -1).flatten(0, -2)
    mean = flat.mean(dim=0)
    _, sizes, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    return mean, directions[:CHANNELS], sizes[:CHANNELS] / len(flat) ** 0.5


def vae_weights(
    vqgan: Any, mean: Tensor, directions: Tensor, deviations: Tensor
) -> dict[str, Tensor]:
    """Return the weights of an AutoencoderKL whose scaled latents have a deviation of 1."""
    weights = {k: v for k, v in vqgan.state_dict().items() if k.startswith(("encoder", "decoder"))}
    # An AutoencoderKL's encoder also gives the logarithms of variances.
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name])])
    width = len(mean)
    before, after = vqgan.quant_conv, vqgan.post_quant_conv
    down = directions / (deviations[:, None] * SCALE)
    up = directions.T * (deviations * SCALE)
    quant = torch.zeros(2 * CHANNELS, 2 * width, 1, 1)
    quant[:CHANNELS, :width, 0, 0] = down @ before.weight[:, :, 0, 0]
    quant_bias = torch.full((2 * CHANNELS,), NO_VARIANCE)
    quant_bias[:CHANNELS] = down @ (before.bias - mean)
    post = after.weight[:, :, 0, 0]
    return {
        **weights,
        "quant_conv.weight": quant,
        "quant_conv.bias": quant_bias,
        "post_quant_conv.weight": (post @ up)[:, :, None, None],
        "post_quant_conv.bias": post @ mean + after.bias,
    }


def start_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Fill the weights of a UNet as Stable Diffusion's are before training.

    ComfyUI leaves them unset. The last layer of each residual block starts at zero.
    """
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        if weight.ndim == 1:
            nn.init.ones_(weight)
        else:
            nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            nn.init.zeros_(weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Training:
    """A UNet, the mean of its weights, and how far it has come.

    Args:
        model: ComfyUI's model of the UNet, with its noise schedule.
        latents: (N, 4, h, w), of deviation 1.
        blank: what the UNet sees in place of texts, (BATCH, 1, width).
        seed: of the weights, the noise and the order.
    """

    def __init__(self, model: Any, latents: Tensor, blank: Tensor, seed: int = 0):
        self.network: nn.Module = model.diffusion_model.train().requires_grad_(True)
        self.sigmas: Tensor = model.model_sampling.sigmas
        self.latents = latents
        self.blank = blank
        self.generator = torch.Generator().manual_seed(seed)
        start_weights(self.network, self.generator)
        self.mean = {name: w.detach().clone() for name, w in self.network.named_parameters()}
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=RATE, betas=(0.9, 0.99))
        self.done = 0
        self.losses: list[float] = []

    def step(self) -> float:
        """Do one update, and return its loss."""
        g = self.generator
        clean = self.latents[torch.randint(len(self.latents), (BATCH,), generator=g)]
        # Each batch has all levels of noise, evenly.
        shares = (torch.arange(BATCH) + torch.rand(BATCH, generator=g)) / BATCH
        times = (shares * len(self.sigmas)).long()
        sigma = self.sigmas[times][:, None, None, None]
        signal = (1 + sigma**2).rsqrt()
        noise = torch.randn(clean.shape, generator=g)
        noisy = signal * (clean + sigma * noise)
        velocity = signal * (noise - sigma * clean)
        with fast_cpu():
            predicted = self.network(noisy, times.float(), context=self.blank)
        loss = F.mse_loss(predicted.float(), velocity)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1, (self.done + 1) / WARM_UP)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        kept = min(0.999, 1 - 10 / (self.done + 10))  # the share of the former mean
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                self.mean[name].lerp_(weight, 1 - kept)
        return loss.item()

    def state(self) -> dict[str, Any]:
        """Return all that goes on from here."""
        return {
            "network": self.network.state_dict(), "mean": self.mean, "done": self.done,
            "optimizer": self.optimizer.state_dict(), "losses": self.losses,
            "generator": self.generator.get_state(),
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.mean, self.done, self.losses = state["mean"], state["done"], state["losses"]


def encoded_corpus(work: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Return the VAE's weights, and latents (N, 4, h, w) of the training pictures on white."""
    pixels, pictures = corpus.load(work)
    rows = [picture.index for picture in pictures if picture.split == "train"]
    images = Pictures(torch.from_numpy(pixels[rows]), corpus.SIZE).plain(torch.arange(len(rows)))
    vqgan = load_vqgan()
    raw = raw_latents(vqgan, images)
    mean, directions, deviations = components(raw)
    latents = torch.einsum("nchw,dc->ndhw", raw - mean[:, None, None], directions)
    weights = vae_weights(vqgan, mean, directions, deviations)
    return weights, latents / deviations[:, None, None]


def main() -> None:
    """Train, and write the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comfyui_train", description=__doc__)
    parser.add_argument("comfyui", type=Path, help="the folder of a ComfyUI, with main.py")
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("build/tiny.safetensors"))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    start_comfyui(options.comfyui)
    from .comfyui_tiny import TINY_WIDTH, UNET, VAE, model_of

    latents_path, state_path = (options.out.with_suffix(s) for s in (".latents", ".state"))
    if not latents_path.exists():
        vae, latents = encoded_corpus(options.work)
        with write_beside(latents_path) as temporary:
            save_file({"latents": latents.contiguous(), **vae}, temporary)
    vae = load_file(latents_path)
    blank = torch.zeros(BATCH, 1, TINY_WIDTH)
    training = Training(model_of("tiny"), vae.pop("latents"), blank)
    if state_path.exists():
        training.resume(torch.load(state_path, weights_only=True))
    start = time.process_time()
    for _ in (bar := trange(training.done, options.steps)):
        training.losses.append(training.step())
        bar.set_postfix(loss=f"{sum(training.losses[-50:]) / len(training.losses[-50:]):.4f}")
        if training.done % EVERY == 0 or training.done == options.steps:
            with write_beside(state_path) as temporary:
                torch.save(training.state(), temporary)
            weights = {UNET + name: weight for name, weight in training.mean.items()}
            weights |= {VAE + name: weight.contiguous() for name, weight in vae.items()}
            origin = {"steps": str(training.done)}
            with write_beside(options.out) as temporary:
                save_file(weights, temporary, origin)
    print(f"{time.process_time() - start:.0f} s of one core")


if __name__ == "__main__":
    main()
