"""Fine-tune a CLIP's image tower into a CLIPAG.

    clipag finetune mini
    torchrun --nproc-per-node 8 -m clipag_plugins.finetune clipag-vit-b-32 --out runs/vit-b-32

The same command goes on where a kill left a run: with the same batch, seed and data it may be
started again on another number of processes. All randomness is a function of the seed, the
step and a picture's place in the batch, so no generator's state has to be kept.
"""

import copy
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from clipag_plugins import precision, registry
from clipag_plugins.attack import L2, pgd
from clipag_plugins.base import ClipagModel, ImageTower, normalize
from clipag_plugins.errors import ClipagError
from clipag_plugins.files import require_writable_folder, write_beside
from clipag_plugins.finetune import checkpoint, data, processes, sharding
from clipag_plugins.finetune.card import write_card
from clipag_plugins.finetune.config import Config, check_processes
from clipag_plugins.finetune.evaluate import Scores, evaluate
from clipag_plugins.finetune.gradcache import Batch, Spool, Times, gradient
from clipag_plugins.finetune.objectives import Clipag, Fare, Objective, Tecoa
from clipag_plugins.hub import load_model
from clipag_plugins.mini import MiniClip, build_towers
from clipag_plugins.targets import text_embeddings

Validation = tuple[Tensor, Tensor, Tensor]  # images, labels, and the texts (C, D)


@dataclass
class Run:
    """What a checkpoint holds beside weights: where the data is, cost so far, and precision."""

    states: dict[int, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    precision: str = ""

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take plain values."""
        vars(self).update(state)


def build(config: Config) -> ClipagModel:
    """Make the model to start from, frozen, in eval mode and in float32.

    Raises:
        ClipagError: there is no such model or architecture.
    """
    import open_clip

    torch.manual_seed(config.seed)  # for towers that start untrained
    if config.model in open_clip.list_models():
        from clipag_plugins import architecture

        state = open_clip.create_model(config.model).state_dict()
        shape = open_clip.get_model_config(config.model)
        model = architecture.from_config(shape, architecture.clean(state), config.model, "")
    else:
        model = load_model(config.model)
    if config.vision:
        model = _with_tower(model, config)
    return model.eval().requires_grad_(False)


def _with_tower(model: ClipagModel, config: Config) -> ClipagModel:
    """Give an embedded model an untrained image tower of another shape."""
    if not isinstance(model, MiniClip):
        raise ClipagError(f"vision is for the embedded models alone, not for {config.model!r}.")
    model.config = {**model.config, "vision_cfg": dict(config.vision)}
    try:
        tower, _ = build_towers(model.config)
        model.visual = ImageTower(tower, config.vision["image_size"], model.config["embed_dim"])
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ClipagError(f"vision is {config.vision}: no tower can be built of it.") from error
    return model


def objective_of(config: Config, model: ClipagModel, tower: nn.Module) -> Objective:
    """Make the objective that a config names, for a tower that is not trained yet."""

    def texts(captions: Sequence[str]) -> Tensor:
        return text_embeddings(model, captions, truncate=True)

    scale = float(model.logit_scale.exp())
    if config.objective == "fare":
        return Fare(copy.deepcopy(tower).requires_grad_(False))
    if config.objective == "tecoa":
        return Tecoa(texts, scale, data.class_names(config.data), config.template)
    return Clipag(texts, scale)


def optimizer_of(config: Config, tower: nn.Module) -> torch.optim.AdamW:
    """Make the optimiser; biases, norms and gains do not decay."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in tower.parameters() if p.ndim > 1]},
        {"params": [p for p in tower.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
    )  # fmt: skip


def rate(config: Config, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def collect(config: Config, source: data.Data, step: int, spool: Spool) -> Batch:
    """Read this process' part of a step's batch, its images to a file."""
    spool.clear()
    captions: list[str] = []
    places: list[int] = []
    for number in range(config.batch // processes.count() // config.micro_batch):
        images, texts = source.take()
        spool.append(images)
        captions += texts
        places += source.indices(number)
    first = (config.seed * 1_000_003 + step) * config.batch
    seeds = [(first + place) % 2**63 for place in places]
    return Batch(spool, captions, seeds, config.batch)


def train(config: Config, out: Path, device: torch.device) -> Path:
    """Train as a config says, and return the folder of the result, which `load` takes.

    Args:
        config: the run.
        out: its folder, which is made if need be. Where it holds a run, that goes on.
        device: where to compute.

    Raises:
        ClipagError: something in the config cannot be had, or the folder holds another run.
        KeyboardInterrupt: SIGTERM or Ctrl-C came, and a checkpoint was saved after the update
            that was being made; the argument is the signal's number.
    """
    processes.join(device)
    check_processes(config, processes.count())
    first = processes.rank() == 0
    sharded = config.shard and processes.count() > 1
    scratch = Path(config.scratch).expanduser() if config.scratch else out
    if config.scratch:
        require_writable_folder(scratch)

    model = build(config).to(device)
    tower: nn.Module = model.visual
    side = model.visual.native_size
    objective = objective_of(config, model, tower)
    original = copy.deepcopy(tower).cpu()
    tower.requires_grad_(True)
    if config.checkpoint_activations:
        keep_no_activations(tower)
    threat_model = config.threat.model()
    source = data.Data(config, side, processes.rank(), processes.count(), out)
    validation = None
    if config.validation.kind and first:
        validation = held_out(config, model, side)

    # From here on the data alone says what happens; where it stands is in the checkpoint.
    average = checkpoint.Averaged(tower, config.ema)
    if sharded:
        originals = [objective.original] if isinstance(objective, Fare) else []
        for each in (tower, average.tower, *originals):
            sharding.shard(each, device)
    optimizer = optimizer_of(config, tower)
    run, recipe = Run(), checkpoint.Recipe(config.identity())
    parts = {
        "recipe": recipe,
        "run": run,
        "tower": sharding.Weights(tower) if sharded else tower,
        "average": sharding.Weights(average) if sharded else average,
        "optimizer": sharding.Moments(tower, optimizer) if sharded else optimizer,
    }
    start = checkpoint.restore_last(out, parts)
    if start:
        source.restore(run.states)
    if config.precision != "auto":
        run.precision = config.precision
    elif not run.precision:  # one measurement for all processes and for the whole run
        # float16's range would need the loss scaled
        fast = precision.choose("auto", tower) == torch.bfloat16
        run.precision = processes.gather("bfloat16" if fast else "float32")[0]
    dtype = precision.DTYPES[run.precision]
    learner = tower
    if config.compile:
        tower.compile()
    if processes.count() > 1 and not sharded:
        learner = DistributedDataParallel(tower)
    log = Log(config, out, start) if first else None
    out.mkdir(parents=True, exist_ok=True)  # only now: a run that is refused leaves nothing
    if first:
        checkpoint.tidy(out)
    images, attacked = Spool(scratch), Spool(scratch)
    times = Times()

    def shown() -> nn.Module:
        """Return the average in one piece on the first process; all processes call it."""
        return sharding.whole(average.tower, original) if sharded else average.tower

    result = out / "model"
    # Pictures and tables tell models apart by their names. What it started from would lend it
    # licence and threat model.
    model.name = f"{out.name}-finetuned" if out.name in registry.MODELS else out.name
    model.source = None

    @cache
    def before() -> Scores | None:
        return _scores(config, original.to(device), validation)

    def keep(done: int, learnt: nn.Module) -> None:
        """Write the model that the run has come to, and how good it is."""
        if log is None:
            return
        scores = before(), _scores(config, learnt, validation)
        if scores[1] is not None:
            log.scores(done, scores[1])
        model.visual = learnt
        model.eval().save_pretrained(result)
        skipped = sum(state[1] for state in run.states.values())
        write_card(result, config, model, done, run.seconds, machine(device), skipped, *scores)

    steps = range(start, config.steps)
    with processes.heeding() as signals:
        for step in checkpoint.progress(start, config.steps, out.name) if first else steps:
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate(config, step)
            batch = collect(config, source, step, images)
            times.add("data")
            optimizer.zero_grad()
            loss = gradient(
                learner, objective, threat_model, batch, attacked,
                clean_weight=config.clean_weight, dtype=dtype, times=times,
            )  # fmt: skip
            norm: Any = nn.utils.clip_grad_norm_(tower.parameters(), config.clip)
            norm = float(norm.full_tensor() if sharded else norm)
            if not math.isfinite(loss + norm):
                raise ClipagError(
                    f"The loss of step {step + 1} is {loss} and its gradient's norm {norm}: go on "
                    "with --set precision=float32 or, if that was it already, start in another "
                    "--out with a lower lr. The last checkpoint is kept."
                )
            optimizer.step()
            average.update(tower, step)
            times.add("update")
            run.seconds += time.perf_counter() - began
            done = step + 1

            stop = [number for each in processes.gather(signals) for number in each]
            draw = config.picture_every and done % config.picture_every == 0
            judge = config.evaluate_every and done % config.evaluate_every == 0
            save = done % config.save_every == 0 or done == config.steps or stop
            if save or judge:
                for states in processes.gather(source.states):
                    run.states |= states
            if save:
                _save(out, done, parts, config.keep)
            if stop:
                processes.gather(None)  # nobody leaves before the checkpoint is written
                raise KeyboardInterrupt(stop[0])
            if log is not None:
                skipped = sum(state[1] for state in source.states.values())
                log.step(done, loss, norm, rate(config, step), times, skipped)
            if draw or judge:
                present = shown()
                if log is not None and draw:
                    log.picture(done, draw_pag(model, present, config.prompts, side))
                if judge and done < config.steps:
                    keep(done, present)

    keep(config.steps, shown())
    processes.gather(None)  # nobody leaves before the result is written
    return result


def _save(out: Path, step: int, parts: dict[str, Any], keep: int) -> None:
    try:
        checkpoint.save_in(out, step, parts, keep)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as the latter
        reason = str(error).splitlines()[0]
        raise ClipagError(
            f"The checkpoint of step {step} could not be kept in {out} ({reason}): if the disk is "
            "full, make room, and give the same command again. The checkpoints before it are there."
        ) from error


def held_out(config: Config, model: ClipagModel, side: int) -> Validation:
    """Read the validation data, and embed the texts that its pictures choose from.

    Of classes these are all, put into the template, as for any zero-shot classification; of
    pictures with captions, the captions of the sample.
    """
    images, captions = data.held_out(config.validation, side, config.evaluate_samples)
    classes = config.validation.kind == "classes"
    names = data.class_names([config.validation]) if classes else sorted(set(captions))
    template = config.template if classes or config.objective == "tecoa" else "{}"
    texts = text_embeddings(model, [template.replace("{}", name) for name in names], truncate=True)
    number = {name: i for i, name in enumerate(names)}
    return images, torch.tensor([number[caption] for caption in captions]), texts


def _scores(config: Config, tower: nn.Module, validation: Validation | None) -> Scores | None:
    if validation is None:
        return None
    images, labels, texts = validation
    return evaluate(
        tower, texts, images, labels, config.threat.model(), config.evaluate_top,
        config.micro_batch,
    )  # fmt: skip


def keep_no_activations(tower: nn.Module) -> None:
    """Compute the activations of a tower's blocks again in the backward pass."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    apply_activation_checkpointing(tower, check_fn=sharding.is_block)


def draw_pag(
    model: ClipagModel, tower: nn.Module, prompts: Sequence[str], side: int, steps: int = 12
) -> Image.Image:
    """Draw the PAG: what strong targeted attacks make of grey noise (paper, Figure 1)."""
    prompts = prompts or ["a red apple", "a castle", "a sailboat", "an owl"]
    texts = text_embeddings(model, prompts, truncate=True)
    device = texts.device
    noise = torch.randn(len(prompts), 3, side, side, generator=torch.Generator().manual_seed(0))
    grey = (0.5 + 0.1 * noise).clamp(0, 1).to(device)
    reach = 0.25 * side  # 0.14 in each value, as a root mean square

    def similarity(images: Tensor) -> Tensor:
        z = nn.functional.normalize(tower(normalize(images)), dim=-1)
        return (z * texts).sum()

    drawn = pgd(grey, similarity, L2(reach, steps, reach / steps), start=grey)
    row = torch.cat([*drawn], dim=2).permute(1, 2, 0)
    picture = Image.fromarray((row * 255).round().to("cpu", torch.uint8).numpy())
    return picture.resize((picture.width * 2, picture.height * 2)) if side < 112 else picture


class Log:
    """TensorBoard's log, and that of Weights & Biases if the config names a project."""

    def __init__(self, config: Config, out: Path, start: int):
        self._out, self._config, self._last = out, config, Times()
        self._wandb: Any = None
        if config.wandb:
            try:
                import wandb
            except ImportError as error:
                raise ClipagError("wandb is not installed: pip install wandb.") from error
            self._wandb = wandb.init(project=config.wandb, name=out.name, id=out.name,
                                     resume="allow", config=config.identity())  # fmt: skip
        self._writer = SummaryWriter(str(out / "log"), purge_step=start + 1)

    def step(
        self, step: int, loss: float, norm: float, rate: float, times: Times, skipped: int
    ) -> None:
        """Log an update and where its time went."""
        values = {"loss": loss, "gradient norm": norm, "lr": rate,
                  "skipped samples of process 0": skipped}  # fmt: skip
        for part in ("data", "attack", "update"):
            values[f"seconds/{part}"] = getattr(times, part) - getattr(self._last, part)
        self._last = copy.copy(times)
        self._write(step, values)

    def scores(self, step: int, scores: Scores) -> None:
        """Log an evaluation."""
        self._write(step, {"clean accuracy": scores.clean, "robust accuracy": scores.robust})

    def picture(self, step: int, picture: Image.Image) -> None:
        """Keep a picture of the PAG, as a file too."""
        folder = self._out / "pictures"
        folder.mkdir(exist_ok=True)
        with write_beside(folder / f"{step:08d}.png") as temporary:
            picture.save(temporary)
        import numpy as np

        self._writer.add_image("PAG", np.asarray(picture), step, dataformats="HWC")

    def _write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)


def machine(device: torch.device) -> str:
    """Say on what a run computes."""
    count = processes.count()
    if device.type == "cuda":
        return f"{count} × {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{count} process(es) of {threads} thread(s) on a {platform.machine()} CPU"


if __name__ == "__main__":
    sys.exit("Start it as python -m clipag_plugins.finetune CONFIG.")
