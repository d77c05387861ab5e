"""Train the embedded VQGAN: taming-transformers' own model, with its own losses.

    python -m clipag_plugins.finetune.embedded.vqgan --work build/weights

A VQGAN (Esser, Rombach & Ommer, CVPR 2021) is an autoencoder that rounds its latent to the codes of
a codebook. Its loss compares pixels and features, and has a discriminator. LPIPS would compare
VGG16's features, but no package registry has that network. So the loss uses features of
`clipag-mini`'s image tower, compared as in LPIPS (Zhang et al., CVPR 2018) but with equal weights
for all channels.

Codes that were not used for a while are moved to outputs of the encoder (Dhariwal et al.,
"Jukebox", 2020), so that few are wasted.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.base import normalize
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import checkpoint
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.embedded.image_tower import Pictures
from clipag_plugins.finetune.embedded.recipe import MINI, VQGAN
from clipag_plugins.integrations.vqgan.taming import taming
from clipag_plugins.mini import MiniImageTower, build_towers

SIDE, BATCH, STEPS = 48, 8, 1900
RATE, LAST_RATE, WARM_UP = 5e-4, 2e-5, 50
ADVERSARY = 0.65  # share of the steps before the discriminator joins the loss
FEATURES = 0.1  # weight of the feature distance; that of the pixel distance is 1
EVERY = 50  # steps between moves of unused codes, and between checkpoints


class FeatureDistance(nn.Module):
    """Distance of two images in the features of a tower's stages; replaces LPIPS in taming's loss.

    Args:
        tower: the image tower, which is frozen.
    """

    def __init__(self, tower: MiniImageTower):
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return distances (B, 1, 1, 1) of images (B, 3, H, W) in [-1, 1]."""
        x = normalize((torch.cat([a, b]) + 1) / 2)
        distance = x.new_zeros(len(a), 1, 1, 1)
        layers = list(self.tower.layers)
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            x = layer(x)
            if following is None or isinstance(following, nn.Conv2d):  # a stage ends here
                features_a, features_b = F.normalize(x, dim=1).chunk(2)
                squares = (features_a - features_b).pow(2).sum(dim=1, keepdim=True)
                distance = distance + squares.mean(dim=(2, 3), keepdim=True)
        return distance


def build(work: Path, steps: int) -> Any:
    """Build taming's model and its loss, untrained."""
    losses = taming("modules.losses.vqperceptual")
    tower, _ = build_towers(MINI)
    tower.load_state_dict(load_file(work / "clipag.safetensors"))
    # taming's LPIPS would download VGG16. `losses` is this package's own copy of the module.
    vars(losses)["LPIPS"] = lambda: FeatureDistance(cast(MiniImageTower, tower))
    no_loss = {"target": "torch.nn.Identity"}
    model = taming("models.vqgan").VQModel(**VQGAN["params"], lossconfig=no_loss)
    model.loss = losses.VQLPIPSWithDiscriminator(
        disc_start=int(ADVERSARY * steps), disc_num_layers=2, disc_ndf=32, disc_weight=0.3,
        perceptual_weight=FEATURES,
    )  # fmt: skip
    return model


def crops(pictures: Pictures, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random window of each augmented picture, (B, 3, SIDE, SIDE) in [-1, 1]."""
    images = pictures.augmented(rows, generator)
    corners = torch.randint(corpus.SIZE - SIDE + 1, (len(rows), 2), generator=generator).tolist()
    windows = [
        image[:, top : top + SIDE, left : left + SIDE]
        for image, (top, left) in zip(images, corners, strict=True)
    ]
    return torch.stack(windows) * 2 - 1


@torch.no_grad()
def move_unused(
    codes: nn.Embedding, used: Tensor, latents: Tensor, generator: torch.Generator
) -> int:
    """Move unused codes to randomly chosen latents; return how many were moved.

    Args:
        codes: the codebook, (codes, embed_dim).
        used: how often each code was used, (codes,).
        latents: outputs of the encoder, (N, embed_dim).
        generator: chooses the latents.
    """
    unused = (used == 0).nonzero()[:, 0]
    # No latent is chosen twice: of two equal codes, the second would never be used.
    chosen = torch.randperm(len(latents), generator=generator)[: len(unused)]
    codes.weight[unused[: len(chosen)]] = latents[chosen]
    return len(chosen)


@torch.no_grad()
def evaluate(model: Any, pictures: Pictures, rows: Tensor) -> str:
    """Return one line on the reconstruction of whole pictures on white, and on the codes used."""
    errors, used = [], torch.zeros(model.quantize.n_e)
    for chunk in rows.split(32):
        images = pictures.plain(chunk) * 2 - 1
        quant, _, (_, _, codes) = model.encode(images)
        decoded = model.decode(quant).clamp(-1, 1)
        errors.append(((decoded - images) / 2).pow(2).mean(dim=(1, 2, 3)))
        used += codes.flatten().bincount(minlength=len(used))
    psnr = (-10 * torch.cat(errors).log10()).mean()
    share = used / used.sum()
    perplexity = torch.special.entr(share).sum().exp()
    return (
        f"PSNR {psnr:.2f} dB on {len(rows)} held-out pictures, {int((used > 0).sum())} of "
        f"{len(used)} codes used, perplexity {perplexity:.0f}"
    )


def train(work: Path, seed: int, steps: int) -> None:
    """Train and write `vqgan.safetensors` to `work`. Resumes if it was interrupted."""
    torch.manual_seed(seed)
    pixels, entries = corpus.load(work)
    pictures = Pictures(torch.tensor(pixels), corpus.SIZE)
    training, held_out = (
        torch.tensor([entry.index for entry in entries if entry.split == split])
        for split in ("train", "test")
    )
    model = build(work, steps)
    discriminator = model.loss.discriminator
    autoencoder = [p for name, p in model.named_parameters() if not name.startswith("loss.")]
    optimizer = torch.optim.Adam(autoencoder, RATE, betas=(0.5, 0.9))
    adversary = torch.optim.Adam(discriminator.parameters(), RATE, betas=(0.5, 0.9))
    recipe = checkpoint.Recipe(
        {"seed": seed, "shape": VQGAN, "steps": steps, "batch": BATCH, "side": SIDE, "lr": RATE}
    )
    parts = {"recipe": recipe, "model": model, "optimizer": optimizer, "adversary": adversary}
    path = work / "vqgan.checkpoint.pt"
    start = checkpoint.restore(path, parts)
    used = torch.zeros(model.quantize.n_e)
    running = 0.0
    for step in checkpoint.progress(start, steps, "vqgan"):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = training[torch.randint(len(training), (BATCH,), generator=generator)]
        images = crops(pictures, chosen, generator)
        for group in (*optimizer.param_groups, *adversary.param_groups):
            decay = (LAST_RATE / RATE) ** max(0.0, 2 * step / steps - 1)
            group["lr"] = RATE * decay * min(1.0, (step + 1) / WARM_UP)

        latent = model.quant_conv(model.encoder(images))
        if step == 0:  # the codes start as outputs of the untrained encoder
            move_unused(model.quantize.embedding, used, _vectors(latent), generator)
        quant, quant_loss, (_, _, codes) = model.quantize(latent)
        decoded = model.decode(quant)
        loss, metrics = model.loss(
            quant_loss, images, decoded, 0, step, last_layer=model.get_last_layer()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(autoencoder, 1.0)
        optimizer.step()
        if step >= model.loss.discriminator_iter_start:
            adversary_loss, _ = model.loss(quant_loss, images, decoded.detach(), 1, step)
            adversary.zero_grad()
            adversary_loss.backward()
            adversary.step()

        pixel = metrics["train/rec_loss"].item()
        running += 0.02 * (pixel - running) if running else pixel
        used += codes.flatten().bincount(minlength=len(used))
        if step % EVERY == EVERY - 1:
            moved = 0
            if step < 3 * steps // 4:  # afterwards the codes settle
                moved = move_unused(model.quantize.embedding, used, _vectors(latent), generator)
            used.zero_()
            checkpoint.save(path, step + 1, parts)
            print(f" vqgan: step {step + 1}, loss {running:.4f}, {moved} codes moved", flush=True)
        if step % 1000 == 999:
            sample = evaluate(model, pictures, held_out[:64])
            print(f" vqgan: step {step + 1}, {sample}", flush=True)
    print(f" vqgan: {evaluate(model, pictures, held_out)}")
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("loss.")}
    with write_beside(work / "vqgan.safetensors") as temporary:
        save_file(state, temporary)


def _vectors(latent: Tensor) -> Tensor:
    """Return the vectors (N, embed_dim) of a latent (B, embed_dim, H, W)."""
    return latent.detach().movedim(1, -1).flatten(0, 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    train(arguments.work, arguments.seed, arguments.steps)
