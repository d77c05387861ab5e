"""Train the embedded image towers against the frozen text tower.

    python -m clipag_plugins.finetune.embedded.image_tower vanilla --work build/weights
    python -m clipag_plugins.finetune.embedded.image_tower clipag  --work build/weights

`vanilla` is ordinary contrastive training. `clipag` starts from it and solves CLIPAG's
min–max (Ganz & Elad, WACV 2024, eq. 3): perturb each picture within an L2 ball so that it
matches its caption least, then make the tower match it all the same. The text tower is
frozen, so the embeddings of *all* captions are the contrastive batch.

On top of the paper, `clipag` learns from its own dreams: from a blurred other picture it
ascends its own similarity to a caption, as the sampler will, and the result joins the
batch as a negative of that caption. What the ascent can reach but no artist drew loses
similarity, so the gradient keeps pointing past it, at pictures. This is adversarial
training on the other side of the data (Yin et al., "Learning Energy-Based Models With
Adversarial Training", ECCV 2022; Augustin et al., "RATIO", ECCV 2020).
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins import precision
from clipag_plugins.attack import L2, pgd, unit_l2
from clipag_plugins.base import normalize
from clipag_plugins.download import sha256
from clipag_plugins.errors import exit_on_user_error
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import checkpoint
from clipag_plugins.finetune.checkpoint import Averaged
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.embedded.recipe import BATCH, CLIPAG, MINI, VANILLA, Stage
from clipag_plugins.finetune.evaluate import Scores, evaluate
from clipag_plugins.mini import MiniTextTower, build_towers
from clipag_plugins.tokenizer import tokenize

EMA = 0.998
WEIGHT_DECAY = 0.02


class Pictures:
    """The corpus at one side, drawn on random backgrounds with random pose and light."""

    def __init__(self, pixels: Tensor, side: int):
        # Premultiplied, or the colours hidden under alpha 0 would bleed in when resampled.
        resized = []
        for chunk in pixels.split(512):
            rgba = chunk.permute(0, 3, 1, 2).float() / 255
            rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
            small = F.interpolate(rgba, size=side, mode="bilinear", antialias=True)
            resized.append((small * 255).round().to(torch.uint8))
        self.rgba = torch.cat(resized)
        self.side = side

    def plain(self, rows: Tensor) -> Tensor:
        """Return pictures on white, (B, 3, side, side) in [0, 1]."""
        rgba = self.rgba[rows].float() / 255
        return rgba[:, :3] + 1 - rgba[:, 3:]

    def augmented(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return pictures in random pose on random backgrounds, (B, 3, side, side)."""
        n = len(rows)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(n, *shape, generator=generator) * (high - low) + low

        zoom, angle = uniform(0.85, 1.3), uniform(-0.25, 0.25)
        flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        shift = uniform(-0.15, 0.15, 2)
        pose = torch.stack(
            [cos * flip, -sin, shift[:, 0], sin * flip, cos, shift[:, 1]], dim=1
        ).view(n, 2, 3)
        grid = F.affine_grid(pose, [n, 4, self.side, self.side], align_corners=False)
        rgba = F.grid_sample(self.rgba[rows].float() / 255, grid, align_corners=False)

        # A third white, a third one colour, a third a soft mixture of colours.
        kind = uniform(0, 3, 1, 1, 1)
        colour = uniform(0, 1, 3, 1, 1).expand(-1, -1, self.side, self.side)
        mixture = F.interpolate(uniform(0, 1, 3, 3, 3), size=self.side, mode="bicubic")
        ground = torch.where(kind < 1, 1.0, torch.where(kind < 2, colour, mixture))
        images = rgba[:, :3] + (1 - rgba[:, 3:]) * ground
        light = (images - 0.5) * uniform(0.7, 1.1, 1, 1, 1) + 0.5 + uniform(-0.1, 0.1, 1, 1, 1)
        return light.clamp(0, 1)

    def blurred(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented pictures without their detail: where an ascent may start."""
        images = self.augmented(rows, generator)
        parts = []
        for chunk, detail in zip(images.chunk(4), (2, 4, 8, 16), strict=True):
            small = F.interpolate(chunk, size=detail, mode="area")
            parts.append(F.interpolate(small, size=self.side, mode="bicubic"))
        blurred = torch.cat(parts)
        return (blurred + 0.1 * torch.randn(blurred.shape, generator=generator)).clamp(0, 1)


def dream(
    embed: Callable[[Tensor], Tensor],
    start: Tensor,
    targets: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Ascend similarity to `targets` from `start`, by steps along the unit gradient."""
    # Step lengths vary, so that every stretch of the sampler's path is met in training.
    reach = torch.rand(len(start), 1, 1, 1, generator=generator) * 1.5 + 0.5
    reach = reach * start.shape[-1] / 64
    images = start
    for _ in range(steps):
        images.requires_grad_(True)
        similarity = (embed(images) * targets).sum()
        (gradient,) = torch.autograd.grad(similarity, images)
        with torch.no_grad():
            images = (images + reach * unit_l2(gradient)).clamp(0, 1)
    return images.detach()


def load_text_tower(work: Path) -> MiniTextTower:
    """Load the frozen text tower that `finetune.embedded.text_tower` made."""
    _, text_tower = build_towers(MINI)
    state = {k: v.float() for k, v in load_file(work / "text.safetensors").items()}
    text_tower.load_state_dict(state)
    return text_tower.eval().requires_grad_(False)


def embed_texts(text_tower: MiniTextTower, texts: list[str]) -> Tensor:
    """Return unit-length embeddings (N, embed_dim) of texts."""
    with torch.no_grad():
        chunks = [
            text_tower(tokenize(texts[i : i + 256], truncate=True))
            for i in range(0, len(texts), 256)
        ]
    return F.normalize(torch.cat(chunks), dim=1)


class Trainer:
    """The corpus, the frozen captions, and one step of training on them."""

    def __init__(self, work: Path, seed: int):
        pixels, rows = corpus.load(work)
        self.pixels = torch.tensor(pixels)
        self.captions = sorted({row.caption for row in rows})
        number = {caption: i for i, caption in enumerate(self.captions)}
        self.caption_of = torch.tensor([number[row.caption] for row in rows])
        self.embeddings = embed_texts(load_text_tower(work), self.captions)
        self.train = torch.tensor([i for i, row in enumerate(rows) if row.split == "train"])
        self.test = torch.tensor([i for i, row in enumerate(rows) if row.split == "test"])
        # Captions without a training picture must not serve even as negatives.
        self.allowed = torch.zeros(len(self.captions), dtype=torch.bool)
        self.allowed[self.caption_of[self.train]] = True
        self.seed = seed
        self.dtype = precision.fastest(self.pixels.device)

    def embed(self, tower: nn.Module, images: Tensor) -> Tensor:
        """Return unit-length embeddings (B, embed_dim), computed in the fastest precision."""
        autocast = torch.autocast(
            images.device.type, self.dtype, enabled=self.dtype != torch.float32
        )
        with autocast:
            found: Tensor = tower(normalize(images))
        return F.normalize(found.float(), dim=1)

    def losses(
        self, tower: nn.Module, scale: Tensor, pictures: Pictures, stage: Stage, step: int
    ) -> Tensor:
        """Return the loss of one batch (eq. 3, and the dreams' part of it)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = self.train[torch.randint(len(self.train), (BATCH,), generator=generator)]
        images, caption = pictures.augmented(rows, generator), self.caption_of[rows]
        targets, candidates = self.embeddings[caption], self.embeddings
        fixed_scale = scale.detach().exp()

        def mismatch(x: Tensor, factor: Tensor) -> Tensor:
            logits = factor * self.embed(tower, x) @ candidates.T
            return F.cross_entropy(
                logits.masked_fill(~self.allowed, -1e4), caption, reduction="sum"
            )

        if stage.attack_steps:
            eps = stage.eps * stage.side / 64
            threat = L2(eps, stage.attack_steps, 1.5 * eps / stage.attack_steps)
            images = pgd(images, lambda x: mismatch(x, fixed_scale), threat, generator)
        if not stage.dreams:
            return mismatch(images, scale.exp()) / BATCH

        wanted = slice(0, stage.dreams)
        others = self.train[torch.randint(len(self.train), (stage.dreams,), generator=generator)]
        steps = int(torch.randint(1, stage.dream_steps + 1, (1,), generator=generator))
        start = pictures.blurred(others, generator)
        dreams = dream(partial(self.embed, tower), start, targets[wanted], steps, generator)

        z = self.embed(tower, torch.cat([images, dreams]))
        logits = (scale.exp() * z[:BATCH] @ candidates.T).masked_fill(~self.allowed, -1e4)
        matching = F.cross_entropy(logits, caption)
        # Caption to picture: the artist's among the batch's and the dreamt ones. Other
        # pictures of the same caption are no negatives of it.
        similarity = scale.exp() * targets @ z.T
        same = caption[:, None] == caption[None, :]
        same.fill_diagonal_(False)
        same = torch.cat([same, torch.zeros(BATCH, stage.dreams, dtype=torch.bool)], dim=1)
        picking = F.cross_entropy(similarity.masked_fill(same, -1e4), torch.arange(BATCH))
        # The dream against the picture it stands in for, one to one: real or dreamt?
        pairs = similarity[wanted].diagonal() - similarity[wanted, BATCH:].diagonal()
        return matching + 0.5 * picking + 0.5 * F.softplus(-pairs).mean()

    def retrieval(self, tower: nn.Module, texts: Tensor, side: int, eps: float) -> Scores:
        """Return how often a held-out picture has its caption in the top 10, clean and attacked.

        `texts` are the embeddings of all captions. The attack is PGD of 5 steps, L2; eps is on
        64 × 64 images.
        """
        images = Pictures(self.pixels[self.test], side).plain(torch.arange(len(self.test)))
        threat = L2(eps * side / 64, 5, eps * side / 128)
        # At CLIP's scale of 100 the softmax saturates and the attack is weaker.
        return evaluate(
            tower, texts, (images * 255).round().to(torch.uint8),
            self.caption_of[self.test], threat, top=10, scale=30.0,
        )  # fmt: skip


def train(kind: str, work: Path, seed: int) -> None:
    """Train one tower and write `{kind}.safetensors` to `work`; resumes after a kill."""
    torch.manual_seed(seed)
    trainer = Trainer(work, seed)
    stages = VANILLA if kind == "vanilla" else CLIPAG
    tower = build_towers(MINI)[0].to(memory_format=torch.channels_last)
    if kind == "clipag":
        tower.load_state_dict(load_file(work / "vanilla.safetensors"))
    scale = nn.Parameter(torch.tensor(3.4))
    average = Averaged(tower, EMA)
    groups: list[dict[str, Any]] = [
        {"params": list(tower.parameters())},
        {"params": [scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=1e-3, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY,
    )  # fmt: skip
    holder = nn.ParameterDict({"scale": scale})
    recipe = checkpoint.Recipe(
        {
            "seed": seed,
            "shape": MINI,
            "batch": BATCH,
            "stages": [asdict(s) for s in stages],
            "corpus": sha256(work / "captions.json"),
            "text tower": sha256(work / "text.safetensors"),
        }
    )
    parts = {
        "recipe": recipe,
        "tower": tower,
        "average": average,
        "optimizer": optimizer,
        "scale": holder,
    }
    path = work / f"{kind}.checkpoint.pt"
    start, total = checkpoint.restore(path, parts), sum(stage.steps for stage in stages)
    ends = [sum(s.steps for s in stages[: i + 1]) for i in range(len(stages))]
    pictures: Pictures | None = None
    running = 0.0
    for step in checkpoint.progress(start, total, kind):
        number = next(i for i, end in enumerate(ends) if step < end)
        stage = stages[number]
        if pictures is None or pictures.side != stage.side:
            pictures = Pictures(trainer.pixels, stage.side)
        following = stages[number + 1].rate if number + 1 < len(stages) else stage.rate / 50
        done = (step - (ends[number] - stage.steps)) / stage.steps
        rate = stage.rate + (following - stage.rate) * done
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 60)
        loss = trainer.losses(tower, scale, pictures, stage, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(max=4.0)
        average.update(tower, step)
        running += 0.02 * (loss.item() - running) if running else loss.item()
        if step % 50 == 49:
            checkpoint.save(path, step + 1, parts)
            print(
                f" {kind}: step {step + 1}, loss {running:.3f}, scale {scale.exp().item():.1f}",
                flush=True,
            )
        if step % 200 == 199 or step == total - 1:
            found = trainer.retrieval(average.tower, trainer.embeddings, stage.side, eps=1.0)
            print(
                f" {kind}: step {step + 1}, top-10 {found.clean:.1%}, under PGD {found.robust:.1%}",
                flush=True,
            )
    with write_beside(work / f"{kind}.safetensors") as temporary:
        state = {k: v.contiguous() for k, v in average.tower.state_dict().items()}
        save_file(state, temporary, metadata={"logit_scale": str(float(scale))})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=["vanilla", "clipag"])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with exit_on_user_error():
        train(arguments.kind, arguments.work, arguments.seed)
