"""The settings of a run: plain values, read from a TOML file, every one checked by name."""

import contextlib
import dataclasses
import difflib
import math
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from clipag_plugins.arguments import fraction
from clipag_plugins.attack import THREAT_MODELS, ThreatModel
from clipag_plugins.errors import ClipagError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"
OBJECTIVES = ("clipag", "tecoa", "fare")
KINDS = ("shards", "table", "files", "classes", "corpus")
# What makes a run that run: a checkpoint with others of these is not resumed.
IDENTITY = ("model", "vision", "objective", "clean_weight", "batch", "streams", "seed", "steps",
            "lr", "weight_decay", "betas", "clip", "warmup", "threat", "data", "crop", "ema",
            "template")  # fmt: skip


@dataclass(frozen=True)
class Threat:
    """The threat model that is trained against; with 0 attack_steps and eps 0, none.

    Attributes:
        norm: "l2" or "linf".
        eps: radius, for images in [0, 1] of the tower's own side; may be a fraction, "2/255".
        attack_steps: PGD steps.
        step_size: length of one; 0 is 2 · eps / attack_steps.
    """

    norm: str = "l2"
    eps: float = 1.5
    attack_steps: int = 5
    step_size: float = 0.0

    def model(self, attack_steps: int | None = None) -> ThreatModel:
        """Return it as an object, with another number of steps if asked for."""
        steps = self.attack_steps if attack_steps is None else attack_steps
        keep = self.step_size and steps == self.attack_steps
        length = self.step_size if keep else 2 * self.eps / max(1, steps)
        return THREAT_MODELS[self.norm](self.eps, steps, length)


@dataclass(frozen=True)
class Source:
    """One source of image–caption pairs.

    Attributes:
        kind: "shards" (webdataset tars as img2dataset writes them; braces and lists of paths,
            URLs and pipe: commands), "files" (a folder with a .txt beside each picture, as
            img2dataset writes too), "table" (.csv, .tsv or .jsonl with a picture's path and its
            caption), "classes" (an ImageFolder, the folders' names being the classes) or
            "corpus" (the folder of `finetune.embedded.corpus`).
        path: where it is.
        weight: how often it is drawn from, relative to the others.
        split: of a corpus alone: "train", "test" or "unseen".
        image, caption: columns of a table.
    """

    kind: str = ""
    path: str | list[str] = ""
    weight: float = 1.0
    split: str = "train"
    image: str = "image"
    caption: str = "caption"


@dataclass(frozen=True)
class Config:
    """A run.

    Attributes:
        model: where to start: a name of `available_models()`, a weights file, a folder, a
            repository of the Hub, or an architecture of open_clip, which starts untrained.
        vision: an untrained image tower in the place of an embedded model's, as its
            `vision_cfg`; the model's text tower stays.
        objective: "clipag" (contrastive under attack), "tecoa" (supervised by class names) or
            "fare" (unsupervised).
        clean_weight: weight of the same loss on the images as they are.
        template: what "tecoa", and validation by classes, make of a class name.
        steps: updates.
        batch: effective batch: samples of one update, over all processes.
        micro_batch: samples that a process computes at once: it sets the memory.
        lr, weight_decay, betas, clip: AdamW's, and the largest gradient norm. The decay is not
            applied to biases, norms and gains.
        warmup: updates of linear warm-up; a cosine to 0 follows.
        ema: decay of the average of the weights; the average is the result. 0 is none.
        precision: "auto" (bfloat16 where a measurement at the run's start finds it fast),
            "float32" or "bfloat16".
        compile: pass the tower through `torch.compile`.
        shard: give each of several processes a share of the weights, their gradients, AdamW's
            moments and the average (FSDP2), and not a copy (DDP): for a tower whose gradients
            and moments one device cannot hold. At the start it must hold the weights twice.
        checkpoint_activations: compute the blocks' activations twice instead of keeping them.
        crop: smallest share of the area that a random square crop takes.
        streams: independent sequences that the data is read in; a multiple of the number of
            processes, whatever it will be. A batch is made of equal parts of each.
        workers: processes that decode, for each that computes.
        scratch: folder for the pictures between the two passes of an update, on a fast local
            disk; by default the run's own. float32 takes 0.6 MB for a picture of 224 pixels.
        seed: of everything.
        save_every, keep: updates between checkpoints, and how many are kept.
        picture_every, prompts: updates between pictures of the PAG, and what they should show.
        evaluate_every, evaluate_samples, evaluate_top: updates between evaluations, which also
            write the model (0: at the end alone), samples of one, and among how many of the
            likeliest texts a picture's own counts as found.
        wandb: a project of Weights & Biases to log to as well.
        threat: the threat model.
        data: the sources.
        validation: held-out data, for the evaluations.
    """

    model: str = ""
    vision: dict[str, Any] = field(default_factory=dict)
    objective: str = "clipag"
    clean_weight: float = 0.0
    template: str = "a photo of a {}"
    steps: int = 1000
    batch: int = 512
    micro_batch: int = 128
    lr: float = 2e-5
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
    data: list[Source] = field(default_factory=list)
    validation: Source = field(default_factory=Source)

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with its checkpoint."""
        values = dataclasses.asdict(self)
        return {key: values[key] for key in IDENTITY}


def read(name: str, changes: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a config: a file, or the name of one that comes with the package.

    Args:
        name: a path, or a name as `names()` lists.
        changes: settings that replace the file's, as "lr=1e-4" or "threat.eps=0.5".

    Raises:
        ClipagError: there is no such file, or something in it is not a setting.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        path = CONFIGS / f"{name}.toml"
    if not path.is_file():
        raise ClipagError(f"There is no config {name!r}: name a .toml file, or {names()}.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ClipagError(f"{path} is not valid TOML: {error}.") from error
    for change in changes:
        _change(values, change)
    config: Config = _build(Config, values, "")
    check(config)
    return config


def names() -> str:
    """List the configs that come with the package."""
    return ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))


def _change(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise ClipagError(f"--set {change}: write it as KEY=VALUE, for example lr=1e-4.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a word without its quotation marks
    *parents, last = key.strip().split(".")
    place: Any = values
    for parent in parents:
        if isinstance(place, list) and parent.isdecimal() and int(parent) < len(place):
            place = place[int(parent)]
        elif isinstance(place, dict):
            place = place.setdefault(parent, {})
        else:
            raise ClipagError(f"--set {change}: there is no {key!r} to set.")
    if not isinstance(place, dict):
        raise ClipagError(f"--set {change}: there is no {key!r} to set.")
    place[last] = value


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            remedy = f"did you mean {where}{near[0]}?" if near else f"known are {', '.join(hints)}."
            raise ClipagError(f"{where}{key} is no setting: {remedy}")
        arguments[key] = _value(hints[key], value, f"{where}{key}")
    return kind(**arguments)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, f"{where}.")
    if get_origin(hint) is types.UnionType:
        hint = next((h for h in get_args(hint) if isinstance(value, get_origin(h) or h)), hint)
    if get_origin(hint) is list and isinstance(value, list):
        return [_value(get_args(hint)[0], v, f"{where}.{i}") for i, v in enumerate(value)]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return fraction(value)
    plain = get_origin(hint) or hint
    if not isinstance(plain, type) or type(value) is not plain:
        word = hint.__name__ if isinstance(hint, type) else str(hint)
        raise ClipagError(f"{where} is {value!r}, which is no {word}: correct the config.")
    return value


def check(config: Config) -> None:
    """Refuse a config whose values cannot make a run."""
    if not config.model:
        raise ClipagError('model is not set: name where to start, as in model = "clip-mini".')
    if not config.data:
        raise ClipagError("There is no [[data]]: name at least one source of pictures.")
    _choice("objective", config.objective, OBJECTIVES)
    _choice("precision", config.precision, ("auto", "float32", "bfloat16"))
    _choice("threat.norm", config.threat.norm, tuple(THREAT_MODELS))
    held_out = [config.validation] if config.validation.kind else []
    for source in [*config.data, *held_out]:
        _choice("data.kind", source.kind, KINDS)
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
    for name, least in (("steps", 1), ("batch", 1), ("micro_batch", 1), ("streams", 1),
                        ("workers", 0), ("save_every", 1), ("keep", 1), ("warmup", 0),
                        ("picture_every", 0), ("evaluate_every", 0), ("evaluate_samples", 1),
                        ("evaluate_top", 1)):  # fmt: skip
        if getattr(config, name) < least:
            raise ClipagError(f"{name} is {getattr(config, name)}: it must be {least} or more.")
    threat = config.threat
    for name, value in (("lr", config.lr), ("clip", config.clip)):
        if not 0 < value < math.inf:
            raise ClipagError(f"{name} is {value}: it must be a number above 0.")
    for name, value in (("weight_decay", config.weight_decay), ("seed", config.seed),
                        ("clean_weight", config.clean_weight), ("threat.eps", threat.eps),
                        ("threat.step_size", threat.step_size)):  # fmt: skip
        if not 0 <= value < math.inf:
            raise ClipagError(f"{name} is {value}: it must be 0 or more.")
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise ClipagError(f"betas is {config.betas}: give two numbers from 0 to below 1.")
    attack_steps, eps = threat.attack_steps, threat.eps
    if min(attack_steps, eps) < 0 or (attack_steps == 0) != (eps == 0):
        raise ClipagError(
            f"threat.eps is {eps} in {attack_steps} attack_steps: both must be above 0, or both "
            "0 for no attack."
        )
    for name, low, high in (("crop", 0.0, 1.0), ("ema", 0.0, 1.0)):
        if not low <= getattr(config, name) <= high:
            raise ClipagError(f"{name} is {getattr(config, name)}: choose from {low} to {high}.")
    if config.shard and config.compile:
        raise ClipagError("shard and compile are both true: set one of them to false.")
    if "{}" not in config.template:
        raise ClipagError(f"template is {config.template!r}: the class name goes where {{}} is.")


def check_processes(config: Config, processes: int) -> None:
    """Refuse a batch that cannot be shared out among the processes."""
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


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ClipagError(f"{name} is {value!r}: choose {', '.join(choices)}.")
