"""The settings of a run, and the checks of their values."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from clipag_plugins.attack import THREAT_MODELS, ThreatModel
from clipag_plugins.errors import ClipagError

OBJECTIVES = ("clipag", "clipag+dreams", "tecoa", "fare")
SOURCE_KINDS = ("shards", "table", "files", "classes", "corpus")
# What a stage may set for itself.
STAGE_KEYS = ("steps", "side", "lr", "lr_end", "decay", "warmup", "threat", "dreams")
# A checkpoint is resumed only by a config with the same values of these.
IDENTITY = ("model", "vision", "objective", "clean_weight", "candidates", "template", "batch",
            "streams", "seed", "weight_decay", "betas", "clip", "data", "crop", "ema", "scale",
            "max_scale", "learn_scale", *STAGE_KEYS)  # fmt: skip


@dataclass(frozen=True)
class Threat:
    """The threat model of training; with `attack_steps` and `eps` both 0, none.

    Attributes:
        norm: "l2" or "linf".
        eps: radius, for images in [0, 1] of the side that is trained on; may be a fraction,
            "2/255".
        attack_steps: PGD steps.
        step_size: length of one; 0 is 2 · eps / attack_steps.
    """

    norm: str = "l2"
    eps: float = 1.5
    attack_steps: int = 5
    step_size: float = 0.0

    def model(self) -> ThreatModel:
        """Return it as an object."""
        length = self.step_size or 2 * self.eps / max(1, self.attack_steps)
        norm: Any = THREAT_MODELS[self.norm]
        model: ThreatModel = norm(self.eps, self.attack_steps, length)
        return model


@dataclass(frozen=True)
class Dreams:
    """The pictures that the tower draws itself, of objective "clipag+dreams".

    Attributes:
        share: dreams for each picture of the batch, from above 0 to 1.
        steps: most gradient steps of a dream; each micro-batch draws its number from 1 on.
    """

    share: float = 0.25
    steps: int = 5

    def count(self, pictures: int) -> int:
        """Return the number of dreams for so many pictures: at least 1."""
        return max(1, round(self.share * pictures))


@dataclass(frozen=True)
class Source:
    """One source of image–caption pairs.

    Attributes:
        kind: "shards" (webdataset tars as img2dataset writes them; braces and lists of paths,
            URLs and pipe: commands), "files" (a folder with a .txt beside each picture, as
            img2dataset writes too), "table" (.csv, .tsv or .jsonl with a picture's path and its
            caption), "classes" (an ImageFolder: the folders' names are the classes) or
            "corpus" (the folder of `finetune.embedded.corpus`).
        path: where it is.
        weight: how often it is drawn from, relative to the others.
        augment: "crop" (a random square, on white) or "pose" (the central square in random
            pose and light, on a random background: for drawings with an alpha channel).
        split: of a corpus alone: "train", "test" or "unseen".
        image, caption: columns of a table.
    """

    kind: str = ""
    path: str | list[str] = ""
    weight: float = 1.0
    augment: str = "crop"
    split: str = "train"
    image: str = "image"
    caption: str = "caption"


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        model: where to start: a name of `available_models()`, a weights file, a folder, a
            repository of the Hub, or an architecture of open_clip, which starts untrained.
        vision: an untrained image tower that replaces an embedded model's, as its
            `vision_cfg`; the model's text tower stays.
        objective: "clipag" (contrastive under attack), "clipag+dreams" (the same, with pictures
            that the tower draws itself as negatives), "tecoa" (supervised by class names) or
            "fare" (unsupervised).
        candidates: of clipag: the captions that a picture's own is told from: those of the
            "batch", or "all" of the data, which must then be classes, a table or a corpus.
        scale: inverse temperature of the logits to start from; 0 is the model's own.
        learn_scale, max_scale: train the scale as well, and its bound.
        clean_weight: weight of the same loss on the images as they are.
        template: what "tecoa", and validation by classes, make of a class name.
        steps: updates. With stages, by default all of theirs; fewer end the run early.
        stages: parts of the run with their own `STAGE_KEYS`, one after the other. Each counts its
            steps from 0, for `warmup` and `decay` too. A stage takes what it does not set from
            the run.
        batch: effective batch: samples of one update, over all processes.
        micro_batch: samples that a process computes at once: it sets the memory.
        side: of the training images, in pixels; 0 is the tower's own side.
        lr, weight_decay, betas, clip: AdamW's, and the largest gradient norm. The decay is not
            applied to biases, norms, gains and the scale.
        warmup: updates of linear warm-up; the decay follows.
        decay, lr_end: "cosine" or "linear", down to this rate.
        ema: decay of the average of the weights; the average is the result. 0 is none.
        precision: "auto" (bfloat16 where the hardware of the first process has it),
            "float32" or "bfloat16".
        compile: pass the tower through `torch.compile`.
        shard: split the weights, gradients, AdamW's moments and the average among the processes
            (FSDP2) instead of copying them (DDP): for a tower whose gradients and moments one
            device cannot hold. At the start a device must hold the weights twice.
        checkpoint_activations: compute the blocks' activations twice instead of storing them.
        crop: smallest share of the area that a random square crop takes.
        streams: independent sequences that the data is read in; a multiple of any number of
            processes that the run may have. A batch is made of equal parts of each.
        workers: decoding processes of each computing process.
        scratch: folder for the pictures between the two passes of an update, on a fast local
            disk; by default the run's own. In float32 a picture of 224 pixels takes 0.6 MB.
        seed: of everything.
        save_every, keep: updates between checkpoints, and how many are kept.
        picture_every, prompts: updates between pictures of the PAG, and what they should show.
        evaluate_every, evaluate_samples, evaluate_top: updates between evaluations, which also
            write the model (0: at the end alone); samples of one; and a picture counts as a hit
            if its own text is among so many likeliest.
        wandb: a project of Weights & Biases to log to as well.
        threat: the threat model.
        dreams: of objective "clipag+dreams".
        data: the sources.
        validation: held-out data, for the evaluations.
    """

    model: str = ""
    vision: dict[str, Any] = field(default_factory=dict)
    objective: str = "clipag"
    candidates: str = "batch"
    scale: float = 0.0
    learn_scale: bool = False
    max_scale: float = 100.0
    clean_weight: float = 0.0
    template: str = "a photo of a {}"
    steps: int = 1000
    batch: int = 512
    micro_batch: int = 128
    side: int = 0
    lr: float = 2e-5
    lr_end: float = 0.0
    decay: str = "cosine"
    weight_decay: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    clip: float = 1.0
    warmup: int = 0
    ema: float = 0.0
    precision: str = "auto"
    compile: bool = False
    shard: bool = False
    checkpoint_activations: bool = False
    crop: float = 0.9
    streams: int = 8
    workers: int = 0
    scratch: str = ""
    seed: int = 0
    save_every: int = 100
    keep: int = 3
    picture_every: int = 0
    prompts: list[str] = field(default_factory=list)
    evaluate_every: int = 0
    evaluate_samples: int = 1000
    evaluate_top: int = 1
    wandb: str = ""
    threat: Threat = field(default_factory=Threat)
    dreams: Dreams = field(default_factory=Dreams)
    data: list[Source] = field(default_factory=list)
    validation: Source = field(default_factory=Source)
    stages: list["Config"] = field(default_factory=list)

    def at(self, step: int) -> tuple["Config", int]:
        """Return the settings of a step, counted from 0, and its number within its stage."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        if not self.stages:
            return self, step
        return self.stages[-1], step + self.stages[-1].steps  # beyond the end: workers prefetch

    @property
    def last(self) -> "Config":
        """The settings of the run's last step."""
        return self.at(self.steps - 1)[0]

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then the decay."""
        stage, step = self.at(step)
        if step < stage.warmup:
            return stage.lr * (step + 1) / stage.warmup
        done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
        falling = 0.5 * (1 + math.cos(math.pi * done)) if stage.decay == "cosine" else 1 - done
        return stage.lr_end + (stage.lr - stage.lr_end) * falling

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with its checkpoint."""
        values = dataclasses.asdict(self)
        stages = [{key: stage[key] for key in STAGE_KEYS} for stage in values["stages"]]
        return {**{key: values[key] for key in IDENTITY}, "stages": stages}


def check(config: Config) -> None:
    """Raise ClipagError if a config's values cannot make a run."""
    if not config.model:
        raise ClipagError('model is not set: name where to start, as in model = "clip-mini".')
    if not config.data:
        raise ClipagError("There is no [[data]]: name at least one source of pictures.")
    for source in config.data:
        _check_source(source)
    if config.validation.kind:
        _check_source(config.validation)
    for part in (config, *config.stages):
        _check_choices(part)
        _check_numbers(part)
        _check_threat(part.threat)
    if config.shard and (config.compile or config.learn_scale):
        other = "compile" if config.compile else "learn_scale"
        raise ClipagError(f"shard and {other} are both true: set one of them to false.")
    if "{}" not in config.template:
        raise ClipagError(f"template is {config.template!r}: the class name goes where {{}} is.")


def _check_source(source: Source) -> None:
    _check_choice("data.kind", source.kind, SOURCE_KINDS)
    _check_choice("data.augment", source.augment, ("crop", "pose"))
    if not source.path:
        raise ClipagError(f"A source of {source.kind} has no path: say where it is.")
    if source.kind != "shards" and not isinstance(source.path, str):
        raise ClipagError(
            f"data.path is {source.path}: kind {source.kind} takes one path, so name a source "
            "for each."
        )
    if not 0 < source.weight < math.inf:
        raise ClipagError(
            f"data.weight is {source.weight}: give a number above 0, and leave out what is "
            "not drawn from."
        )


def _check_choices(config: Config) -> None:
    _check_choice("objective", config.objective, OBJECTIVES)
    _check_choice("candidates", config.candidates, ("batch", "all"))
    _check_choice("decay", config.decay, ("cosine", "linear"))
    _check_choice("precision", config.precision, ("auto", "float32", "bfloat16"))
    _check_choice("threat.norm", config.threat.norm, tuple(THREAT_MODELS))


def _check_numbers(config: Config) -> None:
    for name, least in (("steps", 1), ("batch", 1), ("micro_batch", 1), ("streams", 1),
                        ("workers", 0), ("save_every", 1), ("keep", 1), ("warmup", 0),
                        ("picture_every", 0), ("evaluate_every", 0), ("evaluate_samples", 1),
                        ("evaluate_top", 1), ("side", 0)):  # fmt: skip
        if getattr(config, name) < least:
            raise ClipagError(f"{name} is {getattr(config, name)}: it must be {least} or more.")
    for name in ("lr", "clip", "max_scale"):
        if not 0 < getattr(config, name) < math.inf:
            raise ClipagError(f"{name} is {getattr(config, name)}: it must be a number above 0.")
    for name in ("weight_decay", "seed", "clean_weight", "lr_end", "scale"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ClipagError(f"{name} is {getattr(config, name)}: it must be 0 or more.")
    for name in ("crop", "ema"):
        if not 0 <= getattr(config, name) <= 1:
            raise ClipagError(f"{name} is {getattr(config, name)}: choose from 0.0 to 1.0.")
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise ClipagError(f"betas is {config.betas}: give two numbers from 0 to below 1.")
    if not 0 < config.dreams.share <= 1 or config.dreams.steps < 1:
        raise ClipagError(
            f"dreams.share is {config.dreams.share} in {config.dreams.steps} steps: choose a share "
            "from above 0 to 1, and 1 step or more."
        )


def _check_threat(threat: Threat) -> None:
    for name, value in (("threat.eps", threat.eps), ("threat.step_size", threat.step_size)):
        if not 0 <= value < math.inf:
            raise ClipagError(f"{name} is {value}: it must be 0 or more.")
    if threat.attack_steps < 0 or (threat.attack_steps == 0) != (threat.eps == 0):
        raise ClipagError(
            f"threat.eps is {threat.eps} in {threat.attack_steps} attack_steps: both must be above "
            "0, or both 0 for no attack."
        )


def check_processes(config: Config, processes: int) -> None:
    """Raise ClipagError if a batch cannot be split among the processes."""
    if config.streams % processes:
        raise ClipagError(
            f"streams is {config.streams}, no multiple of the {processes} processes: change one."
        )
    for name, value, unit in (
        ("batch", config.batch, config.micro_batch * processes),
        ("micro_batch", config.micro_batch, config.streams // processes),
    ):
        if value % unit:
            raise ClipagError(
                f"{name} is {value}, no multiple of {unit}: with {processes} processes and "
                f"{config.streams} streams, micro_batch must be a multiple of "
                f"{config.streams // processes}, and batch one of micro_batch × {processes}."
            )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ClipagError(f"{name} is {value!r}: choose {', '.join(choices)}.")
