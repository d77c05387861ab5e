"""Train the embedded image towers against the frozen text tower.

    python -m clipag_plugins.finetune.embedded.image_tower vanilla --work build/weights
    python -m clipag_plugins.finetune.embedded.image_tower clipag  --work build/weights

Each is `clipag finetune`, with configs/clip-mini.toml and configs/clipag-mini.toml: `vanilla` is
ordinary contrastive training; `clipag` starts from its result and is adversarial training with
dreams.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins import mini
from clipag_plugins.attack import L2
from clipag_plugins.errors import exit_on_user_error
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import config, train
from clipag_plugins.finetune.augment import posed
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.embedded.recipe import MINI
from clipag_plugins.finetune.evaluate import Scores, evaluate
from clipag_plugins.finetune.report import RESULT
from clipag_plugins.finetune.settings import Config
from clipag_plugins.hub import load_model
from clipag_plugins.tokenizer import tokenize

CONFIGS = {"vanilla": "clip-mini", "clipag": "clipag-mini"}
# Retrieval attacks with L2 radii for 64 × 64 images. At CLIP's scale of 100 the softmax saturates
# and the attack is weaker.
RETRIEVAL_SIDE, RETRIEVAL_STEPS, RETRIEVAL_SCALE, RETRIEVAL_TOP = 64, 5, 30.0, 10
TEXTS_AT_ONCE, PICTURES_AT_ONCE = 256, 512


class Pictures:
    """The corpus at one side, as it is or in random pose, background and light.

    Args:
        pixels: (N, H, W, 4) uint8.
        side: of the pictures.
    """

    def __init__(self, pixels: Tensor, side: int):
        # Premultiplied, or the colours hidden under alpha 0 would bleed in when resampled.
        resized = []
        for chunk in pixels.split(PICTURES_AT_ONCE):
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
        return posed(self.rgba[rows].float() / 255, generator)


def load_text_tower(work: Path) -> mini.MiniTextTower:
    """Load the frozen text tower that `finetune.embedded.text_tower` made."""
    _, text_tower = mini.build_towers(MINI)
    state = {k: v.float() for k, v in load_file(work / "text.safetensors").items()}
    text_tower.load_state_dict(state)
    return text_tower.eval().requires_grad_(False)


def embed_texts(text_tower: mini.MiniTextTower, texts: list[str]) -> Tensor:
    """Return unit-length embeddings (N, embed_dim) of texts."""
    with torch.no_grad():
        chunks = [
            text_tower(tokenize(texts[i : i + TEXTS_AT_ONCE], truncate=True))
            for i in range(0, len(texts), TEXTS_AT_ONCE)
        ]
    return F.normalize(torch.cat(chunks), dim=1)


class EmbeddedCorpus:
    """The corpus, its captions and their embeddings.

    Attributes:
        pixels: (N, 96, 96, 4) uint8.
        captions: all of them, sorted, without repetition.
        caption_of: (N,) numbers of the pictures' captions.
        embeddings: (C, embed_dim) of the captions, of unit length.
        train, test: numbers of the pictures of these splits.
        allowed: (C,) whether a caption has a training picture. The others must not serve in
            training, not even as negatives.
    """

    def __init__(self, work: Path):
        pixels, rows = corpus.load(work)
        self.pixels = torch.tensor(pixels)
        self.captions = sorted({row.caption for row in rows})
        number = {caption: i for i, caption in enumerate(self.captions)}
        self.caption_of = torch.tensor([number[row.caption] for row in rows])
        self.embeddings = embed_texts(load_text_tower(work), self.captions)
        self.train = torch.tensor([i for i, row in enumerate(rows) if row.split == "train"])
        self.test = torch.tensor([i for i, row in enumerate(rows) if row.split == "test"])
        self.allowed = torch.zeros(len(self.captions), dtype=torch.bool)
        self.allowed[self.caption_of[self.train]] = True

    def retrieval(self, tower: nn.Module, texts: Tensor, side: int, eps: float) -> Scores:
        """Return how often a held-out picture has its caption in the top 10, clean and attacked.

        Args:
            tower: an image tower.
            texts: embeddings of all captions.
            side: of the pictures.
            eps: L2 radius of the attack, PGD of 5 steps, for 64 × 64 images in [0, 1].
        """
        images = Pictures(self.pixels[self.test], side).plain(torch.arange(len(self.test)))
        radius = eps * side / RETRIEVAL_SIDE
        threat = L2(radius, RETRIEVAL_STEPS, radius / 2)
        return evaluate(
            tower, texts, (images * 255).round().to(torch.uint8),
            self.caption_of[self.test], threat, top=RETRIEVAL_TOP, scale=RETRIEVAL_SCALE,
        )  # fmt: skip


def write_untrained(work: Path, seed: int) -> Path:
    """Write the model that `vanilla` starts from: the text tower, and an untrained image tower."""
    torch.manual_seed(seed)
    model = mini.build_model(MINI, "untrained")
    model.text = load_text_tower(work)
    return model.save_pretrained(work / "untrained")


def config_of(kind: str, work: Path, seed: int, changes: list[str]) -> Config:
    """Return the config of a tower, with its paths in a work folder."""
    start = work / "untrained" if kind == "vanilla" else work / CONFIGS["vanilla"] / RESULT
    paths = {"model": start, "data.0.path": work, "validation.path": work}
    settings = [f"{key}='{path}'" for key, path in paths.items()]
    return config.read(CONFIGS[kind], [*settings, f"seed={seed}", *changes])


def make(kind: str, work: Path, seed: int) -> None:
    """Train one tower and write `{kind}.safetensors` to `work`; resumes after a kill."""
    if kind == "vanilla":
        write_untrained(work, seed)
    settings = config_of(kind, work, seed, [])
    result = train.train(settings, work / CONFIGS[kind], torch.device("cpu"))
    model = load_model(result)
    state = {k: v.contiguous() for k, v in model.visual.tower.state_dict().items()}
    with write_beside(work / f"{kind}.safetensors") as temporary:
        save_file(state, temporary, metadata={"logit_scale": str(float(model.logit_scale))})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=CONFIGS)
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with exit_on_user_error():
        make(arguments.kind, arguments.work, arguments.seed)
