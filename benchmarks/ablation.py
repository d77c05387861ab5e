"""Towers and threat models in small, as the paper's supplement compares them (Figure 14).

python -m benchmarks.ablation --work build/weights --out build/ablation

A convolutional and a transformer tower are each made robust against L2 and against L∞ by the same
number of updates. All six models then draw with the same sampler, without a generator. A run that
was stopped resumes. The budgets are tiny: they show that the parts work together, and at most a
tendency. The figures go to benchmarks/results/ablation.json.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

import clipag_plugins as clip
from clipag_plugins.ascent import ascend
from clipag_plugins.finetune import config, train
from clipag_plugins.pictures import to_pil
from clipag_plugins.sampler import EMBEDDED_SETTINGS, starting_images

from . import FIGURES, keep
from .common import save_figure

PROMPTS = ("a red apple", "a castle", "a sailboat", "an owl", "a green tree", "a house")
SIDE, LABEL = 112, 190
THREATS = {
    "L2 0.75": ["threat.norm=l2", "threat.eps=0.75"],
    "Linf 4/255": ["threat.norm=linf", "threat.eps=4/255"],
}
ROBUST = ["steps=STEPS", "batch=64", "micro_batch=32", "lr=5e-4", "warmup=10", "ema=0.95",
          "threat.attack_steps=2", "save_every=10", "picture_every=0", "evaluate_samples=256",
          "evaluate_top=10"]  # fmt: skip


def make(name: str, settings: list[str], work: Path, out: Path, run: str) -> Path:
    """Make one model, unless it exists, and return its folder."""
    result = out / run / "model"
    if not (result / "README.md").is_file() or "## Accuracy" not in card(result):
        paths = [f"data.0.path={work}", f"validation.path={work}"]
        train.train(config.read(name, [*paths, *settings]), out / run, torch.device("cpu"))
    return result


def card(model: Path) -> str:
    """Return a model's card."""
    return (model / "README.md").read_text(encoding="utf-8")


def accuracy(model: Path) -> dict[str, dict[str, str]]:
    """Read clean and robust accuracy, before and after, off a card's table."""
    table = re.findall(r"\| (before|after) \| (\S+) \| (\S+) \|", card(model))
    return {when: {"clean": clean, "robust": robust} for when, clean, robust in table}


def draw(model: clip.ClipagModel, seed: int = 0) -> list[Image.Image]:
    """Draw the prompts with the embedded model's settings, whatever the model."""
    targets = [clip.text_target(model, prompt) for prompt in PROMPTS]
    guide = clip.Guide(
        model, [[t] for t in targets], EMBEDDED_SETTINGS.views, seeds=[seed] * len(PROMPTS)
    )
    canvas = EMBEDDED_SETTINGS.canvas(starting_images("gmm", targets, model, 224, seed)[:, 0])
    return [
        to_pil(image)
        for image in ascend(canvas, guide, EMBEDDED_SETTINGS.steps, progress=False).images
    ]


def write_figure(path: Path, drawn: list[tuple[str, list[Image.Image]]]) -> None:
    """Write a labelled row of pictures for each model."""
    sheet = Image.new("RGB", (LABEL + len(PROMPTS) * SIDE, 20 + len(drawn) * SIDE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, prompt in enumerate(PROMPTS):
        pen.text((LABEL + column * SIDE + 4, 3), prompt, "black", font)
    for number, (label, pictures) in enumerate(drawn):
        pen.multiline_text((4, 20 + number * SIDE + 30), label, "black", font)
        for column, picture in enumerate(pictures):
            small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(small, (LABEL + column * SIDE, 20 + number * SIDE))
    save_figure(path, sheet)


def main(work: Path, out: Path, figure: Path, steps: int) -> None:
    """Make the models, draw with them and write the figure."""
    out.mkdir(parents=True, exist_ok=True)
    robust = [setting.replace("STEPS", str(steps)) for setting in ROBUST]
    vit = make("vit-mini", [], work, out, "vit")
    drawn: list[tuple[str, list[Image.Image]]] = []
    figures: dict[str, Any] = {"updates": steps, "accuracy": {}}
    for tower, start in (("ConvNet", "clip-mini"), ("ViT", str(vit))):
        made = {
            threat: make("mini", [f'model="{start}"', *settings, *robust], work, out,
                         f"{tower}-{settings[0].rpartition('=')[2]}")
            for threat, settings in THREATS.items()
        }  # fmt: skip
        drawn.append((f"{tower}, vanilla", draw(clip.load_model(start))))
        for threat, model in made.items():
            shares = accuracy(model)
            after = "\n".join(f"{kind} {share}" for kind, share in shares["after"].items())
            drawn.append((f"{tower}, {threat}\n{after}", draw(clip.load_model(model))))
            figures["accuracy"][f"{tower}, {threat}"] = shares
    write_figure(figure, drawn)
    keep("ablation", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--out", type=Path, default=Path("build/ablation"))
    parser.add_argument("--figure", type=Path, default=FIGURES / "ablation.webp")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.work, options.out, options.figure, options.steps)
