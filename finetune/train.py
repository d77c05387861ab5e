"""Fine-tune a CLIP's image tower into a CLIPAG.

    clipag finetune mini
    torchrun --nproc-per-node 8 -m clipag_plugins.finetune clipag-vit-b-32 --out runs/vit-b-32

The same command resumes a run that was killed; with the same batch, seed and data it may resume
on another number of processes. All randomness is a function of the seed, the step and a picture's
place in the batch, so a checkpoint holds no generator's state.
"""

import copy
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipag_plugins import precision
from clipag_plugins.arguments import FIRST_TOO_LARGE_SEED
from clipag_plugins.base import ClipagModel, ImageTower
from clipag_plugins.errors import ClipagError
from clipag_plugins.files import require_writable_folder
from clipag_plugins.finetune import checkpoint, data, processes, sharding
from clipag_plugins.finetune.dreams import DreamingClipag
from clipag_plugins.finetune.gradcache import Batch, Spool, Times, gradient
from clipag_plugins.finetune.objectives import Clipag, Fare, Objective, Tecoa, Temperature
from clipag_plugins.finetune.progress import Progress
from clipag_plugins.finetune.report import RESULT, Report
from clipag_plugins.finetune.settings import Config, check_processes
from clipag_plugins.finetune.sources import all_captions
from clipag_plugins.hub import load_model
from clipag_plugins.mini import MiniClip, build_towers
from clipag_plugins.targets import text_embeddings

# Farther apart than any number of steps: two seeds share no picture's seed.
SEED_STRIDE = 1_000_003


def train(config: Config, out: Path, device: torch.device) -> Path:
    """Train as a config says, and return the folder of the result, which `load` takes.

    Args:
        config: the run.
        out: its folder, which is made if it is missing. A run in it is resumed.
        device: where to compute.

    Raises:
        ClipagError: something that the config names is missing, or the folder holds another run.
        KeyboardInterrupt: SIGTERM or Ctrl-C came, and a checkpoint was saved after the current
            update; the argument is the signal's number.
    """
    processes.join(device)
    check_processes(config, processes.count())
    scratch = scratch_folder(config, out)
    model = build(config).to(device)
    original = copy.deepcopy(model.visual).cpu()
    temperature = temperature_of(config, model)
    objective = objective_of(config, model, temperature)
    side = model.visual.native_size
    reader = data.Data(config, side, processes.rank(), processes.count(), out)
    report = Report(config, model, original, out, device) if processes.rank() == 0 else None
    learner = Learner(config, model.visual, temperature, objective.frozen_towers, device)
    recipe = checkpoint.Recipe(recipe_of(config, model, reader))
    progress = Progress()
    parts: dict[str, Any] = {"recipe": recipe, "progress": progress, **learner.parts()}

    start = checkpoint.restore_last(out, parts)
    if start:
        reader.load_state_dict(progress.positions)
    dtype = agreed_precision(config, progress, learner.tower)
    tower = learner.called_tower()
    out.mkdir(parents=True, exist_ok=True)  # not before: a run that is refused leaves no folder
    if report is not None:
        report.open(start)
    images, attacked, times = Spool(scratch), Spool(scratch), Times()

    with processes.noted_signals() as signals:
        for step in checkpoint.progress(start, config.steps, out.name):
            began, done = time.perf_counter(), step + 1
            stage, _ = config.at(step)
            objective.dreams = stage.dreams
            batch = collect(config, reader, step, images)
            times.add("data")
            loss = gradient(
                tower, objective, stage.threat.model(), batch, attacked,
                clean_weight=config.clean_weight, dtype=dtype, times=times,
            )  # fmt: skip
            norm = learner.clip(config.clip)
            require_finite(done, loss, norm)
            learner.step(step, config.rate(step))
            times.add("update")
            progress.seconds += time.perf_counter() - began
            interrupts = [number for each in processes.gather(signals) for number in each]
            end = done == config.steps or bool(interrupts)
            save_now = end or is_due(done, config.save_every)
            draw = is_due(done, config.picture_every)
            judge = is_due(done, config.evaluate_every) and not end
            if save_now or judge:
                progress.gather_positions(reader)
            if save_now:
                save(out, done, parts, config.keep)
            if interrupts:
                processes.wait()  # nobody leaves before the checkpoint is written
                raise KeyboardInterrupt(interrupts[0])
            if report is not None:
                report.update(done, loss, norm, times, reader.skipped)
            if draw or judge:
                average = learner.whole_average(original)
            if report is not None and draw:
                report.picture(done, average)
            if report is not None and judge:
                report.model(done, average, temperature.logit_scale, progress)

    average = learner.whole_average(original)
    if report is not None:
        report.model(config.steps, average, temperature.logit_scale, progress)
    processes.wait()  # nobody leaves before the result is written
    return out / RESULT


def is_due(done: int, every: int) -> bool:
    """Return whether something that happens every so many updates, 0 for never, happens now."""
    return every > 0 and done % every == 0


def scratch_folder(config: Config, out: Path) -> Path:
    """Return the folder for what waits between the passes of an update.

    Raises:
        ClipagError: the config names one that cannot be written to.
    """
    if not config.scratch:
        return out
    scratch = Path(config.scratch).expanduser()
    require_writable_folder(scratch)
    return scratch


def build(config: Config) -> ClipagModel:
    """Make the model to start from, frozen, in eval mode and in float32.

    Raises:
        ClipagError: there is no such model or architecture.
    """
    import open_clip

    torch.manual_seed(config.seed)  # for towers that start untrained
    if config.model in open_clip.list_models():
        from clipag_plugins import architecture, checkpoint

        state = open_clip.create_model(config.model).state_dict()
        shape = open_clip.get_model_config(config.model)
        model = architecture.from_config(
            shape, checkpoint.clean(state, config.model), config.model, ""
        )
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


def temperature_of(config: Config, model: ClipagModel) -> Temperature:
    """Make the temperature of the logits: the config's, or else the model's own."""
    scale = config.scale or float(model.logit_scale.exp())
    return Temperature(scale, config.max_scale, config.learn_scale).to(model.device)


def objective_of(config: Config, model: ClipagModel, temperature: Temperature) -> Objective:
    """Make the objective that a config names, for a model that is not trained yet."""

    def encode(texts: Sequence[str]) -> Tensor:
        return text_embeddings(model, texts, truncate=True)

    if config.objective == "fare":
        return Fare(copy.deepcopy(model.visual))
    if config.objective == "tecoa":
        return Tecoa(encode, temperature, all_captions(config.data), config.template)
    candidates = all_captions(config.data) if config.candidates == "all" else None
    kind = DreamingClipag if config.objective == "clipag+dreams" else Clipag
    return kind(encode, temperature, candidates)


class Learner:
    """What is trained: the tower, its average and the temperature, with their optimiser.

    Args:
        config: the run.
        tower: what is trained, frozen until now.
        temperature: trained as well if it is learnt.
        references: frozen towers, which are distributed over the processes as the tower is.
        device: where to compute.
    """

    def __init__(
        self,
        config: Config,
        tower: nn.Module,
        temperature: Temperature,
        references: Sequence[nn.Module],
        device: torch.device,
    ):
        self.tower = tower.requires_grad_(True)
        if config.checkpoint_activations:
            recompute_activations(tower)
        self.temperature = temperature
        self._compile = config.compile
        self._average = checkpoint.Averaged(tower, config.ema)
        shard = config.shard and processes.count() > 1
        self._layout = sharding.Sharded() if shard else sharding.Replicated()
        self._layout.distribute([tower, self._average.tower, *references], device)
        self._optimizer = optimizer_of(config, tower, temperature)

    def parts(self) -> dict[str, checkpoint.Part]:
        """Return the parts of a checkpoint."""
        return {
            "tower": self._layout.weights(self.tower),
            "average": self._layout.weights(self._average),
            "temperature": self.temperature,
            "optimizer": self._layout.moments(self.tower, self._optimizer),
        }

    def called_tower(self) -> nn.Module:
        """Return the tower as an update calls it: compiled, and in DDP, where that applies."""
        if self._compile:
            self.tower.compile()
        return self._layout.called_tower(self.tower)

    def clip(self, largest: float) -> float:
        """Scale the tower's gradient to a norm of at most `largest`; return its norm before."""
        return self._layout.clip(self.tower, largest)

    def step(self, step: int, rate: float) -> None:
        """Update weights, temperature and average, and clear the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.temperature.average_gradient()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.temperature.clamp()
        self._average.update(self.tower, step)

    def whole_average(self, like: nn.Module) -> nn.Module:
        """Return the average in one piece on the first process; all processes must call it."""
        return self._layout.whole(self._average.tower, like)


def optimizer_of(config: Config, tower: nn.Module, temperature: Temperature) -> torch.optim.AdamW:
    """Make the optimiser; biases, norms, gains and the temperature do not decay.

    It takes one pass over the weights, a sixth of the time of several. Those of sharded towers are
    of a type of their own.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in tower.parameters() if p.ndim > 1]},
        {"params": [p for p in tower.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if temperature.logit_scale.requires_grad:
        groups.append({"params": [temperature.logit_scale], "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay, fused=not config.shard,
    )  # fmt: skip


def recompute_activations(tower: nn.Module) -> None:
    """Compute the activations of a tower's blocks again in the backward pass."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    apply_activation_checkpointing(tower, check_fn=sharding.is_block)


def recipe_of(config: Config, model: ClipagModel, reader: data.Data) -> dict[str, Any]:
    """Return what a resumed run must have in common with its checkpoint.

    Paths do not say what is in a file: the data and the frozen part of the model have digests. The
    recipe is the first part of a checkpoint, so that nothing is loaded from another run's.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {
        **config.identity(),
        "text tower": digest.hexdigest(),
        "list of pictures and captions": reader.fingerprint,
    }


def agreed_precision(config: Config, progress: Progress, tower: nn.Module) -> torch.dtype:
    """Return what the run computes in: what the config, the checkpoint or the hardware says.

    The first process's hardware decides for all processes and for the whole run.
    """
    if config.precision != "auto":
        progress.precision = config.precision
    elif not progress.precision:
        # Not float16: its narrow range would need the loss scaled.
        native = precision.choose("auto", tower) == torch.bfloat16
        progress.precision = processes.gather("bfloat16" if native else "float32")[0]
    return precision.DTYPES[progress.precision]


def collect(config: Config, reader: data.Data, step: int, spool: Spool) -> Batch:
    """Read this process's part of a step's batch; its images go to a file."""
    spool.clear()
    captions: list[str] = []
    places: list[int] = []
    for number in range(config.batch // processes.count() // config.micro_batch):
        images, texts = reader.take()
        spool.append(images)
        captions += texts
        places += reader.indices(number)
    first = (config.seed * SEED_STRIDE + step) * config.batch
    seeds = [(first + place) % FIRST_TOO_LARGE_SEED for place in places]
    return Batch(spool, captions, seeds, config.batch)


def require_finite(done: int, loss: float, norm: float) -> None:
    """Raise ClipagError if a step's loss or the norm of its gradient is not finite."""
    if not math.isfinite(loss + norm):
        raise ClipagError(
            f"The loss of step {done} is {loss} and its gradient's norm {norm}: resume with "
            'precision = "float32" or, if it was that already, start with a lower lr and another '
            "`out`. The last checkpoint is kept."
        )


def save(out: Path, step: int, parts: dict[str, Any], keep: int) -> None:
    """Write a checkpoint.

    Raises:
        ClipagError: it cannot be written.
    """
    try:
        checkpoint.save_in(out, step, parts, keep)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as the latter
        reason = str(error).splitlines()[0]
        raise ClipagError(
            f"The checkpoint of step {step} could not be written to {out} ({reason}): if the disk "
            "is full, make room, and give the same command again. Earlier checkpoints are intact."
        ) from error


if __name__ == "__main__":
    sys.exit("Start it as python -m clipag_plugins.finetune CONFIG.")
