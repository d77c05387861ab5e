"""The model card of a fine-tuned model: what `save_pretrained` writes, and how it was made."""

import re
from pathlib import Path

from clipag_plugins import registry
from clipag_plugins.base import ClipagModel
from clipag_plugins.files import write_beside
from clipag_plugins.finetune.evaluate import Scores
from clipag_plugins.finetune.settings import Config, Source, Threat
from clipag_plugins.hub import REPOSITORY

OBJECTIVES = {
    "clipag": "CLIPAG, contrastive under attack (Ganz & Elad, WACV 2024, eq. 3)",
    "clipag+dreams": "CLIPAG (Ganz & Elad, WACV 2024, eq. 3) with its own dreams as negatives",
    "tecoa": "TeCoA, supervised by class names (Mao et al., ICLR 2023)",
    "fare": "FARE, unsupervised (Schlarmann et al., ICML 2024)",
}


def write_card(
    folder: Path,
    config: Config,
    model: ClipagModel,
    done: int,
    seconds: float,
    machine: str,
    skipped: int,
    before: Scores | None,
    after: Scores | None,
) -> None:
    """Add to a model's card its data, threat model, compute, and clean and robust accuracy.

    Args:
        folder: of the model, with its card.
        config: the run.
        model: its result.
        done: updates.
        seconds: time that they took.
        machine: what they were computed on.
        skipped: samples that could not be read.
        before, after: accuracy, or None if the config names no validation data.
    """
    threat = config.last.threat
    start = f"`{config.model}`" + (" with an untrained image tower" if config.vision else "")
    lines = [
        "",
        "## How it was made",
        "",
        f"- started from: {start}; text tower "
        + ("frozen, temperature learnt" if config.learn_scale else "and temperature frozen"),
        f"- objective: {OBJECTIVES[config.objective]}"
        + (f", clean loss × {config.clean_weight:g}" if config.clean_weight else ""),
        f"- threat model: {describe(threat)}, {threat.attack_steps} PGD steps, on images of "
        f"{config.last.side or model.visual.native_size} pixels in [0, 1]",
        f"- data: {'; '.join(map(_source, config.data))}; {skipped} unreadable samples skipped",
        f"- compute: {done} updates of {config.batch} pictures"
        + (f", of {config.steps} in all" if done < config.steps else "")
        + f", {seconds / 3600:.2f} hours on {machine}",
        f"- AdamW, lr {config.at(0)[0].lr:g}, weight decay {config.weight_decay:g}, "
        f"EMA {config.ema:g}, seed {config.seed}",
    ]
    lines += ["", "## Accuracy", ""]
    if before is None or after is None:
        lines += ["Not measured: the config names no validation data."]
    else:
        source = config.validation
        text = f"class, as `{config.template}`," if source.kind == "classes" else "text"
        lines += [
            f"Share of {after.pictures} held-out pictures (`{source.path}`"
            + (f", split {source.split}" if source.kind == "corpus" else "")
            + f") whose own {text} is among the {after.top} likeliest of {after.texts}; robust: "
            f"under the threat model of training, {threat.attack_steps} PGD steps.",
            "",
            "| | clean | robust |",
            "|---|---|---|",
            f"| before | {before.clean:.1%} | {before.robust:.1%} |",
            f"| after | {after.clean:.1%} | {after.robust:.1%} |",
        ]
    card = (folder / "README.md").read_text(encoding="utf-8")
    if base := _hub_name(config.model):
        card = card.replace("---\n", f"---\nbase_model: {base}\n", 1)
    with write_beside(folder / "README.md") as temporary:
        temporary.write_text(card + "\n".join(lines) + "\n", encoding="utf-8")


def _hub_name(model: str) -> str | None:
    if known := registry.MODELS.get(model):
        return known.address if known.place == "hub" else None
    return model if re.fullmatch(REPOSITORY, model) and not Path(model).exists() else None


def describe(threat: Threat) -> str:
    """Name a threat model, as "L2, eps 1.5"."""
    if threat.eps == 0:
        return "none"
    if threat.norm == "linf":
        return f"L∞, eps {threat.eps * 255:.3g}/255"
    return f"L2, eps {threat.eps:g}"


def _source(source: Source) -> str:
    path = source.path if isinstance(source.path, str) else ", ".join(source.path)
    split = f", split {source.split}" if source.kind == "corpus" else ""
    return f"{source.kind} `{path}`{split} (weight {source.weight:g})"
