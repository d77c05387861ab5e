"""Make a pretrained image tower robust, in a given number of minutes.

    python -m clipag_plugins.finetune.embedded.robust_tower --pack build/pack --minutes 8

EfficientNet-Lite0 knows 1,000 classes. Adversarial training on the corpus alone would unlearn those
that the corpus lacks. So the tower is trained on impressions of all classes too, which the network
itself draws first (`impressions`), and on pictures that nobody labelled. On every attacked picture
it learns the caption, the class probabilities that the original network sees in the clean picture,
and the original's features (FARE: Schlarmann et al., ICML 2024).

The folder that `pack` wrote holds all that is needed. The result is at most 16 MB: `plain` and
`robust.safetensors`, the impressions and log.jsonl, each line a minute. The same command goes on
after a kill from `unfinished.safetensors`, the average of a minute before.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from clipag_plugins import architecture, untrusted
from clipag_plugins.attack import unit_l2
from clipag_plugins.errors import exit_on_user_error
from clipag_plugins.files import write_beside
from clipag_plugins.finetune.checkpoint import Averaged
from clipag_plugins.finetune.embedded.impressions import (
    Impressions,
    draw_rounds,
    load_rounds,
    normalised,
)
from clipag_plugins.finetune.embedded.pack import (
    TRUNKS,
    Pack,
    Texts,
    frozen_trunk,
)
from clipag_plugins.finetune.embedded.recipe import Recipe
from clipag_plugins.finetune.embedded.repeated import Repeated, assign_gradients
from clipag_plugins.finetune.embedded.training_pictures import TrainingPictures
from clipag_plugins.lite import LiteTower

SECONDS_BETWEEN_REPORTS = 60.0
FIRST_SCALE = 20.0  # of the logits
STEP = 1.5  # of the attack, as a multiple of eps / steps
WARM_UP = 100  # updates in which the rate rises
SMOOTHING = 0.02  # of the loss in the log
CHUNK = 512  # pictures at once, outside the training
UNFINISHED = "unfinished.safetensors"


@dataclass(frozen=True)
class Batch:
    """Clean pictures and what is to be learnt from them.

    Attributes:
        images: (B, 3, side, side).
        targets: (B,) number of a text; -1 for an unlabelled picture.
        classes: (B,) ImageNet class whose other names are no negatives; -1 for none.
        features, probabilities: what the original network sees: (B, 1280) and (B, 1000).
    """

    images: Tensor
    targets: Tensor
    classes: Tensor
    features: Tensor
    probabilities: Tensor


class Trainer:
    """The tower, the original, the pictures and the losses.

    Args:
        folder: that `pack` wrote.
        drawings: (N, 3, S, S) uint8 impressions.
        drawing_classes: (N,) their classes.
        recipe: how to train.
        device: where to train.
    """

    def __init__(
        self,
        folder: Path,
        drawings: Tensor,
        drawing_classes: Tensor,
        recipe: Recipe,
        device: torch.device,
    ):
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.generator = torch.Generator(device).manual_seed(recipe.seed)
        self.original, self.classifier = frozen_trunk(folder, TRUNKS[0], device)
        self.tower, _ = frozen_trunk(folder, TRUNKS[0], device)
        self.tower.requires_grad_(True)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE), device=device))
        self.pack = Pack(folder, device)
        self.texts = Texts(self.pack)
        self.pictures = TrainingPictures(self.pack, drawings, recipe.side, self.generator)
        self.drawing_classes = drawing_classes
        self.done = 0.0

    def batch(self, size: int) -> Batch:
        """Return a random batch, with what the original network sees in it."""
        recipe, pictures = self.recipe, self.pictures
        of_corpus, drawn = round(size * recipe.corpus), round(size * recipe.drawn)
        rest = size - of_corpus - drawn
        numbers = self.pack.train[pictures.integers(len(self.pack.train), of_corpus)]
        drawings = pictures.integers(len(pictures.drawings), drawn)
        classes = self.drawing_classes[drawings]
        parts = [pictures.of_corpus(numbers), pictures.drawn(drawings)]
        if rest:
            parts.append(pictures.unlabelled(rest))
        captions = self.texts.of_caption[self.pack.caption_of[numbers]]
        names = self.texts.of_class(classes, pictures.uniform(0, 1, drawn))
        none = torch.full((rest,), -1, device=self.device)
        no_class = torch.full((of_corpus,), -1, device=self.device)
        targets, classes = (
            torch.cat(each) for each in ((captions, names, none), (no_class, classes, none))
        )
        images = torch.cat(parts)
        return Batch(images, targets, classes, *self.original_view(images))

    def features(self, tower: LiteTower, images: Tensor) -> Tensor:
        """Return a tower's features (B, 1280) of images in [0, 1]."""
        images = normalised(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            features = tower.features(images)
        return features.float()

    @torch.no_grad()
    def original_view(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the original network's features (B, 1280) and class probabilities (B, 1000)."""
        features = self.features(self.original, images)
        return features, self.classifier(features).softmax(dim=1)

    def losses(self, tower: LiteTower, features: Tensor, batch: Batch) -> Tensor:
        """Return each picture's loss, (B,), from the tower's features (B, 1280)."""
        recipe, texts = self.recipe, self.texts
        z = self.log_scale.exp() * F.normalize(tower.head(features), dim=1)
        of_class = batch.classes[:, None]
        columns = torch.arange(len(texts.embeddings), device=self.device)
        other_name = (of_class == texts.class_of) & (of_class >= 0)
        other_name &= columns != batch.targets[:, None]
        logits = (z @ texts.embeddings.T).masked_fill(other_name, -math.inf)
        matching = F.cross_entropy(logits, batch.targets.clamp_min(0), reduction="none")
        class_logits = (z @ texts.classes.T, self.classifier(features))
        agreement = sum(
            F.cross_entropy(each, batch.probabilities, reduction="none") for each in class_logits
        )
        distance = (features - batch.features).square().sum(dim=1)
        relative = distance / batch.features.square().sum(dim=1).mean()
        return (
            matching * (batch.targets >= 0)
            + recipe.class_loss * agreement
            + recipe.feature_loss * relative
        )

    def attack(self, tower: LiteTower, batch: Batch, eps: Tensor) -> Tensor:
        """Return attacked images: L2 PGD from a random start, against the whole loss."""
        images, steps = batch.images, self.recipe.steps
        noise = torch.randn(images.shape, generator=self.generator, device=self.device)
        length = eps * self.pictures.uniform(0, 1, len(images), 1, 1, 1)
        delta = unit_l2(noise) * length
        for _ in range(steps):
            delta.requires_grad_(True)
            features = self.features(tower, (images + delta).clamp(0, 1))
            (gradient,) = torch.autograd.grad(self.losses(tower, features, batch).sum(), delta)
            delta = delta.detach() + STEP * eps / steps * unit_l2(gradient)
            norms = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
            delta = delta * (eps / norms.clamp_min(1e-12)).clamp(max=1)
        return (images + delta).clamp(0, 1).detach()

    def train_head(self) -> None:
        """Train the head alone, on the original's features of clean pictures."""
        recipe = self.recipe
        batches = [self.batch(CHUNK) for _ in range(max(1, recipe.head_pictures // CHUNK))]
        parameters = [*self.tower.head.parameters(), self.log_scale]
        optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.02)
        for step in range(recipe.head_steps):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - step / recipe.head_steps)
            batch = batches[step % len(batches)]
            loss = self.losses(self.tower, batch.features, batch).mean()
            assign_gradients(loss, parameters)
            optimizer.step()
            self._clamp_scale()

    def _clamp_scale(self) -> None:
        self.log_scale.data.clamp_(max=math.log(self.recipe.scale))

    def train(self, out: Path) -> None:
        """Train the tower for what is left of the minutes; log and save its average each minute."""
        recipe = self.recipe
        head = [*self.tower.head.parameters(), self.log_scale]
        body = [p for name, p in self.tower.named_parameters() if not name.startswith("head.")]
        loss, eps, *rates = (torch.zeros((), device=self.device) for _ in range(4))
        optimizer = torch.optim.AdamW(
            [{"params": p, "lr": rate} for p, rate in zip((body, head), rates, strict=True)],
            weight_decay=1e-4,
            capturable=self.device.type == "cuda",
        )

        def update() -> None:
            self.tower.requires_grad_(False)
            batch = self.batch(recipe.batch)
            attacked = self.attack(self.tower, batch, eps)
            self.tower.requires_grad_(True)
            features = self.features(self.tower, attacked)
            mean = self.losses(self.tower, features, batch).mean()
            assign_gradients(mean, [*body, *head])
            nn.utils.clip_grad_norm_([*body, *head], 1.0)
            optimizer.step()
            self._clamp_scale()
            loss.lerp_(mean.detach(), SMOOTHING)

        repeat, average = Repeated(update, self.generator), Averaged(self.tower, recipe.average)
        averaged = cast(LiteTower, average.tower)
        start = reported = time.monotonic()
        seconds, begun, step = 60 * recipe.minutes, self.done, 0
        bar = tqdm(total=round(seconds * (1 - begun)), unit="s", desc="robust tower")
        while (done := begun + (time.monotonic() - start) / seconds) < 1:
            cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
            rate = recipe.lr * cosine * min(1, (step + 1) / WARM_UP)
            rates[0].fill_(rate)
            rates[1].fill_(2 * rate)
            eps.fill_(recipe.eps * min(1, 0.1 + 0.9 * done / recipe.ramp))
            repeat()
            average.update(self.tower, step)
            step += 1
            if step % 20 == 0:  # waits for the GPU's queue
                bar.set_postfix(step=step, loss=loss.item())
                bar.update(int(time.monotonic() - start) - bar.n)
            if time.monotonic() - reported > SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                self.report(averaged, out, {"step": step, "loss": loss.item(), "done": done})
        bar.close()
        self.report(averaged, out, {"step": step, "loss": loss.item(), "done": 1.0})
        (out / UNFINISHED).replace(out / "robust.safetensors")

    def report(self, tower: LiteTower, out: Path, entry: dict[str, float]) -> None:
        """Log a tower's retrieval, and save it."""
        scale = self.log_scale.exp().item()
        log(out, {**entry, "scale": scale, **self.retrieval(tower)})
        save_tower(tower, scale, out / UNFINISHED, {"done": str(entry["done"])})

    def retrieval(self, tower: LiteTower) -> dict[str, float]:
        """Return how often pictures have their caption in the top 10 (test) or 5 (unseen).

        "impressions" is how often the original's classifier, on the tower's features, names the
        class of an impression.
        """
        pack, captions = self.pack, self.texts.embeddings[: self.texts.captions]
        test = pack.test[self.texts.of_caption[pack.caption_of[pack.test]] >= 0][:CHUNK]
        images, targets = self.pictures.on_white(test), self.texts.of_caption[pack.caption_of[test]]
        batch = Batch(images, targets, torch.full_like(targets, -1), *self.original_view(images))
        attacked = self.attack(tower, batch, torch.tensor(self.recipe.eps, device=self.device))
        unseen = pack.unseen[:CHUNK]
        choices = pack.caption_of[pack.unseen].unique()
        chosen = (choices == pack.caption_of[unseen][:, None]).int().argmax(dim=1)
        drawings = torch.arange(min(CHUNK, len(self.drawing_classes)), device=self.device)
        with torch.no_grad():
            classes = self.classifier(self.features(tower, self.pictures.drawn(drawings)))
            right = classes.argmax(dim=1) == self.drawing_classes[drawings]
            on_white, names = self.pictures.on_white(unseen), pack.captions[choices]
            return {
                "test": self._top(tower, images, captions, targets, 10),
                "attacked": self._top(tower, attacked, captions, targets, 10),
                "unseen": self._top(tower, on_white, names, chosen, 5),
                "impressions": right.float().mean().item(),
            }

    def _top(
        self, tower: LiteTower, images: Tensor, texts: Tensor, targets: Tensor, count: int
    ) -> float:
        z = tower.head(self.features(tower, images))
        top = (z @ texts.T).topk(min(count, len(texts))).indices
        return float((top == targets[:, None]).any(dim=1).float().mean())


def log(out: Path, entry: dict[str, float]) -> None:
    """Print an entry and append it to log.jsonl."""
    text = json.dumps({name: round(value, 4) for name, value in entry.items()})
    tqdm.write(text)
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def save_tower(
    tower: LiteTower, scale: float, path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a tower, its weights in half precision and its statistics in float32."""
    state = {
        name: (value.half() if "weight" in name and value.ndim > 1 else value).cpu().contiguous()
        for name, value in tower.state_dict().items()
    }
    with write_beside(path) as temporary:
        save_file(state, temporary, {"logit_scale": str(math.log(scale)), **(metadata or {})})


def make(
    folder: Path, out: Path, recipe: Recipe, settings: Impressions, device: torch.device
) -> None:
    """Draw impressions, train the tower, and write everything to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with write_beside(out / "recipe.json") as temporary:
        temporary.write_text(json.dumps({"train": asdict(recipe), "draw": asdict(settings)}))
    paths = draw_rounds(folder, out, settings, recipe.seed, device)
    trainer = Trainer(folder, *load_rounds(paths, device), recipe, device)
    unfinished = out / UNFINISHED
    start = unfinished if unfinished.exists() else Path(recipe.start) if recipe.start else None
    if start:
        architecture.load_weights(trainer.tower, untrusted.read(start), str(start))
        if start == unfinished:
            with safe_open(start, "pt") as file:
                trainer.done = float(file.metadata()["done"])
    else:
        trainer.train_head()
        save_tower(trainer.tower, trainer.log_scale.exp().item(), out / "plain.safetensors")
    log(out, trainer.retrieval(trainer.tower))
    trainer.train(out)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pack", type=Path, default=Path("build/pack"))
    parser.add_argument("--out", type=Path, default=Path("build/robust"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=device)
    for prefix, settings in (("", Recipe()), ("drawing-", Impressions())):
        for name, default in asdict(settings).items():
            option = f"--{prefix}{name.replace('_', '-')}"
            parser.add_argument(option, type=type(default), default=default)
    options = vars(parser.parse_args())
    recipe = Recipe(**{name: options[name] for name in asdict(Recipe())})
    settings = Impressions(**{name: options[f"drawing_{name}"] for name in asdict(Impressions())})
    with exit_on_user_error():
        make(options["pack"], options["out"], recipe, settings, options["device"])


if __name__ == "__main__":
    main()
