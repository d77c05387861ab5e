"""Train the embedded VQGAN: taming-transformers' own model, with its own losses.

    python -m clipag_plugins.finetune.embedded.vqgan --work build/weights

Esser, Rombach & Ommer (CVPR 2021): an autoencoder whose latent is rounded to the codes of a
codebook, trained by pixels, by features and against a discriminator. The features of LPIPS are
VGG16's, which no package registry has: here they are those of `clipag-mini`'s image tower, compared
as LPIPS compares them (Zhang et al., CVPR 2018) but with every channel counting the same.

Codes that no place has chosen for a while are moved to where the encoder's output is (Dhariwal et
al., "Jukebox", 2020), so that few are wasted.
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
ADVERSARY = 0.65  # share of the steps after which the discriminator counts
FEATURES = 0.1  # weight of the features' distance beside that of the pixels, whose weight is 1
EVERY = 50  # steps between moves of unused codes, and between checkpoints


class FeatureDistance(nn.Module):
    """How far apart a tower's stages see two images: what taming's loss asks of LPIPS."""

    def __init__(self, tower: MiniImageTower):
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return (B, 1, 1, 1) for images (B, 3, H, W) in [-1, 1]."""
        x = normalize((torch.cat([a, b]) + 1) / 2)
        distance = x.new_zeros(len(a), 1, 1, 1)
        for number, layer in enumerate(self.tower.layers):
            x = layer(x)
            following = number + 1
            ends = following == len(self.tower.layers)
            if ends or isinstance(self.tower.layers[following], nn.Conv2d):  # a stage ends here
                one, other = F.normalize(x, dim=1).chunk(2)
                distance = distance + (one - other).pow(2).sum(dim=1, keepdim=True).mean(
                    dim=(2, 3), keepdim=True
                )
        return distance


def build(work: Path, steps: int) -> Any:
    """Build taming's model and its loss, untrained."""
    losses = taming("modules.losses.vqperceptual")
    tower, _ = build_towers(MINI)
    tower.load_state_dict(load_file(work / "clipag.safetensors"))
    # In our own copy of the module: it would download VGG16.
    vars(losses)["LPIPS"] = lambda: FeatureDistance(cast(MiniImageTower, tower))
    without = {"target": "torch.nn.Identity"}
    model = taming("models.vqgan").VQModel(**VQGAN["params"], lossconfig=without)
    model.loss = losses.VQLPIPSWithDiscriminator(
        disc_start=int(ADVERSARY * steps), disc_num_layers=2, disc_ndf=32, disc_weight=0.3,
        perceptual_weight=FEATURES,
    )  # fmt: skip
    return model


def crops(pictures: Pictures, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return augmented pictures, one random window of each: (B, 3, SIDE, SIDE) in [-1, 1]."""
    images = pictures.augmented(rows, generator)
    corners = torch.randint(corpus.SIZE - SIDE + 1, (len(rows), 2), generator=generator).tolist()
    windows = [
        image[:, top : top + SIDE, left : left + SIDE]
        for image, (top, left) in zip(images, corners, strict=True)
    ]
    return torch.stack(windows) * 2 - 1


@torch.no_grad()
def move_unused(
    codes: nn.Embedding, used: Tensor, places: Tensor, generator: torch.Generator
) -> int:
    """Put codes that were not used at places (N, embed_dim) of the encoder's output."""
    unused = (used == 0).nonzero()[:, 0]
    # Each place takes one code at most: of two that are the same, the second is never chosen.
    chosen = torch.randperm(len(places), generator=generator)[: len(unused)]
    codes.weight[unused[: len(chosen)]] = places[chosen]
    return len(chosen)


@torch.no_grad()
def evaluate(model: Any, pictures: Pictures, rows: Tensor) -> str:
    """Say how well whole held-out pictures on white come back, and how many codes they use."""
    errors, used = [], torch.zeros(model.quantize.n_e)
    for chunk in rows.split(32):
        images = pictures.plain(chunk) * 2 - 1
        quant, _, (_, _, codes) = model.encode(images)
        back = model.decode(quant).clamp(-1, 1)
        errors.append(((back - images) / 2).pow(2).mean(dim=(1, 2, 3)))
        used += codes.flatten().bincount(minlength=len(used))
    psnr = (-10 * torch.cat(errors).log10()).mean()
    share = used / used.sum()
    perplexity = torch.special.entr(share).sum().exp()
    return (
        f"PSNR {psnr:.2f} dB on {len(rows)} held-out pictures, {int((used > 0).sum())} of "
        f"{len(used)} codes used, perplexity {perplexity:.0f}"
    )


def train(work: Path, seed: int, steps: int) -> None:
    """Train and write `vqgan.safetensors` to `work`; resumes after a kill."""
    torch.manual_seed(seed)
    pixels, rows = corpus.load(work)
    pictures = Pictures(torch.tensor(pixels), corpus.SIZE)
    in_split = {s: [row.index for row in rows if row.split == s] for s in ("train", "test")}
    training, held_out = torch.tensor(in_split["train"]), torch.tensor(in_split["test"])
    model = build(work, steps)
    discriminator = model.loss.discriminator
    drawing = [p for name, p in model.named_parameters() if not name.startswith("loss.")]
    optimizer = torch.optim.Adam(drawing, RATE, betas=(0.5, 0.9))
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

        before = model.quant_conv(model.encoder(images))
        if step == 0:  # the codes start where the encoder does
            move_unused(model.quantize.embedding, used, _places(before), generator)
        quant, quant_loss, (_, _, codes) = model.quantize(before)
        back = model.decode(quant)
        loss, facts = model.loss(
            quant_loss, images, back, 0, step, last_layer=model.get_last_layer()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(drawing, 1.0)
        optimizer.step()
        if step >= model.loss.discriminator_iter_start:
            against, _ = model.loss(quant_loss, images, back.detach(), 1, step)
            adversary.zero_grad()
            against.backward()
            adversary.step()

        pixel = facts["train/rec_loss"].item()
        running += 0.02 * (pixel - running) if running else pixel
        used += codes.flatten().bincount(minlength=len(used))
        if step % EVERY == EVERY - 1:
            moved = 0
            if step < 3 * steps // 4:  # the rest of the time they settle
                moved = move_unused(model.quantize.embedding, used, _places(before), generator)
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


def _places(latent: Tensor) -> Tensor:
    return latent.detach().movedim(1, -1).flatten(0, 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    train(arguments.work, arguments.seed, arguments.steps)
