"""What a run shows and leaves: its log, pictures of its gradients, its scores, and the model."""

import copy
import platform
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from clipag_plugins import registry
from clipag_plugins.attack import L2, pgd
from clipag_plugins.base import ClipagModel, normalize
from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside
from clipag_plugins.finetune import checkpoint, processes, sources
from clipag_plugins.finetune.card import write_card
from clipag_plugins.finetune.evaluate import Scores, evaluate
from clipag_plugins.finetune.gradcache import Times
from clipag_plugins.finetune.progress import Progress
from clipag_plugins.finetune.settings import Config
from clipag_plugins.targets import text_embeddings

RESULT = "model"  # the folder of the result, in that of the run
PROMPTS = ("a red apple", "a castle", "a sailboat", "an owl")
PAG_STEPS = 12
# Radius and path length (L2) of the PAG's ascent, times the side: a root mean square of 0.14.
PAG_REACH = 0.25
PAG_GREY, PAG_NOISE = 0.5, 0.1
SMALL_SIDE = 112  # pictures of fewer pixels a side are shown doubled

Validation = tuple[Tensor, Tensor, Tensor]  # images, labels, and the texts (C, D)


class Report:
    """What the first process of a run writes besides checkpoints.

    Args:
        config: the run.
        model: what is trained; the result is written from it.
        original: its tower before training.
        out: the run's folder.
        device: where to compute.

    Raises:
        ClipagError: the validation data cannot be read.
    """

    def __init__(
        self,
        config: Config,
        model: ClipagModel,
        original: nn.Module,
        out: Path,
        device: torch.device,
    ):
        self._config, self._model, self._original = config, model, original
        self._out, self._device = out, device
        self._side = model.visual.native_size
        self._validation = held_out(config, model, self._side) if config.validation.kind else None
        # Pictures and tables tell models apart by their names. The model that the run starts from
        # must not lend its name, its licence and its threat model.
        model.name = f"{out.name}-finetuned" if out.name in registry.MODELS else out.name
        model.source = None

    def open(self, start: int) -> None:
        """Begin to write, `start` being the step that the run resumes from."""
        checkpoint.tidy(self._out)
        self._log = Log(self._config, self._out, start)

    def update(self, done: int, loss: float, norm: float, times: Times, skipped: int) -> None:
        """Log an update."""
        self._log.update(done, loss, norm, self._config.rate(done - 1), times, skipped)

    def picture(self, done: int, tower: nn.Module) -> None:
        """Draw the PAG of a tower."""
        prompts = self._config.prompts or PROMPTS
        self._log.picture(done, draw_pag(self._model, tower, prompts, self._side))

    def model(self, done: int, tower: nn.Module, logit_scale: Tensor, progress: Progress) -> None:
        """Measure a tower, and write it with its card as the run's result, of `done` updates."""
        scores = self._scores(tower)
        if scores is not None:
            self._log.scores(done, scores)
        self._log.flush()
        model, folder = self._model, self._out / RESULT
        model.visual = tower
        with torch.no_grad():
            model.logit_scale.copy_(logit_scale)
        model.eval().save_pretrained(folder)
        write_card(
            folder, self._config, model, done, progress.seconds, machine(self._device),
            progress.skipped, self._scores_before, scores,
        )  # fmt: skip

    @cached_property
    def _scores_before(self) -> Scores | None:
        return self._scores(self._original.to(self._device))

    def _scores(self, tower: nn.Module) -> Scores | None:
        if self._validation is None:
            return None
        config = self._config
        images, labels, texts = self._validation
        threat_model = config.last.threat.model()
        return evaluate(
            tower, texts, images, labels, threat_model, config.evaluate_top, config.micro_batch
        )


def held_out(config: Config, model: ClipagModel, side: int) -> Validation:
    """Read the validation data, and embed the texts that its pictures are told apart by.

    Classes are all put into the template, as for any zero-shot classification. With other sources
    the texts are the captions of the sample.
    """
    images, captions = sources.held_out(config.validation, side, config.evaluate_samples)
    classes = config.validation.kind == "classes"
    names = sources.all_captions([config.validation]) if classes else sorted(set(captions))
    template = config.template if classes or config.objective == "tecoa" else "{}"
    texts = text_embeddings(model, [template.replace("{}", name) for name in names], truncate=True)
    number = {name: i for i, name in enumerate(names)}
    return images, torch.tensor([number[caption] for caption in captions]), texts


def draw_pag(
    model: ClipagModel, tower: nn.Module, prompts: Sequence[str], side: int
) -> Image.Image:
    """Draw the PAG: what strong targeted attacks make of grey noise (paper, Figure 1)."""
    texts = text_embeddings(model, prompts, truncate=True)
    noise = torch.randn(len(prompts), 3, side, side, generator=torch.Generator().manual_seed(0))
    grey = (PAG_GREY + PAG_NOISE * noise).clamp(0, 1).to(texts.device)
    reach = PAG_REACH * side

    def similarity(images: Tensor) -> Tensor:
        z = nn.functional.normalize(tower(normalize(images)), dim=-1)
        return (z * texts).sum()

    drawn = pgd(grey, similarity, L2(reach, PAG_STEPS, reach / PAG_STEPS), start=grey)
    row = torch.cat([*drawn], dim=2).permute(1, 2, 0)
    picture = Image.fromarray((row * 255).round().to("cpu", torch.uint8).numpy())
    if side < SMALL_SIDE:
        picture = picture.resize((picture.width * 2, picture.height * 2))
    return picture


class Log:
    """TensorBoard's log, and that of Weights & Biases if the config names a project.

    Args:
        config: the run.
        out: its folder.
        start: the step that it resumes from; later entries are removed.
    """

    def __init__(self, config: Config, out: Path, start: int):
        self._out, self._last = out, Times()
        self._wandb: Any = None
        if config.wandb:
            try:
                import wandb
            except ImportError as error:
                raise ClipagError("wandb is not installed: pip install wandb.") from error
            self._wandb = wandb.init(project=config.wandb, name=out.name, id=out.name,
                                     resume="allow", config=config.identity())  # fmt: skip
        self._writer = SummaryWriter(str(out / "log"), purge_step=start + 1)

    def update(
        self, done: int, loss: float, norm: float, rate: float, times: Times, skipped: int
    ) -> None:
        """Log an update and how long its parts took."""
        values = {"loss": loss, "gradient norm": norm, "lr": rate,
                  "skipped samples of process 0": skipped}  # fmt: skip
        for part in ("data", "attack", "update"):
            values[f"seconds/{part}"] = getattr(times, part) - getattr(self._last, part)
        self._last = copy.copy(times)
        self._write(done, values)

    def scores(self, done: int, scores: Scores) -> None:
        """Log an evaluation."""
        self._write(done, {"clean accuracy": scores.clean, "robust accuracy": scores.robust})

    def picture(self, done: int, picture: Image.Image) -> None:
        """Log a picture of the PAG, and write it as a file."""
        folder = self._out / "pictures"
        folder.mkdir(exist_ok=True)
        with write_beside(folder / f"{done:08d}.png") as temporary:
            picture.save(temporary)
        self._writer.add_image("PAG", np.asarray(picture), done, dataformats="HWC")

    def flush(self) -> None:
        """Write buffered entries to disk."""
        self._writer.flush()

    def _write(self, done: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, done)
        if self._wandb is not None:
            self._wandb.log(values, step=done)


def machine(device: torch.device) -> str:
    """Describe what a run computes on."""
    count = processes.count()
    if device.type == "cuda":
        return f"{count} × {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{count} process(es) of {threads} thread(s) on a {platform.machine()} CPU"
