"""Zero-shot accuracy, clean and under attack: the paper's threat models on any labelled folder."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..attack import THREAT_MODELS, Linf, ThreatModel, pgd
from ..base import ClipagModel, embed_images
from ..defaults import ATTACKS, SIDE
from ..errors import ClipagError, library
from ..hub import load_model
from ..pictures import read_square
from ..targets import text_embeddings
from .folders import read_folder
from .options import ComputeOptions, require_new_name
from .report import Measurement, Report, mean

TARGET_CLASSES = 9  # wrong classes that each of AutoAttack's targeted attacks tries (its default)


@dataclass(frozen=True)
class RobustnessSettings:
    """How robustness is measured.

    Attributes:
        threat_model: what the attacks may do.
        attacks: some of `ATTACKS`.
        template: the text of a class, with {} for the class's name.
        size: side of the pictures in pixels.
        seed: of the attacks' random numbers.

    Raises:
        ClipagError: `template` has no {}.
    """

    threat_model: ThreatModel
    attacks: Sequence[str] = ATTACKS
    template: str = "{}"
    size: int = SIDE
    seed: int = 0

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise ClipagError(f"`template` {self.template!r} has no {{}} for the class's name.")

    def text_of(self, class_name: str) -> str:
        """Return the text of a class."""
        return self.template.replace("{}", class_name)

    def titles(self) -> dict[str, str]:
        """Return what tables call each attack."""
        norm = next(
            name for name, ball in THREAT_MODELS.items() if isinstance(self.threat_model, ball)
        )
        budget = f"{norm}, eps {self.threat_model.eps:g}"
        titles = {
            "clean": "clean",
            "pgd": f"PGD, {self.threat_model.steps} steps, {budget}",
            "autoattack": f"AutoAttack, {budget}",
        }
        return {attack: titles[attack] for attack in self.attacks}


class ZeroShot(nn.Module):
    """A classifier whose classes are texts: (B, 3, H, W) in [0, 1] → logits (B, C).

    Args:
        model: the CLIP.
        texts: one for each class, such as "a photo of a cat".
    """

    def __init__(self, model: ClipagModel, texts: Sequence[str]):
        super().__init__()
        self.model = model
        self.register_buffer("classes", text_embeddings(model, texts), persistent=False)
        self.classes: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) at the model's own temperature."""
        z = embed_images(self.model, images)
        logits: Tensor = self.model.logit_scale.exp() * z @ self.classes.T
        return logits


def correct_under_attack(
    classifier: ZeroShot,
    images: Tensor,
    labels: Tensor,
    attack: str,
    threat_model: ThreatModel,
    seed: int = 0,
) -> Tensor:
    """Return whether the classifier still gives each attacked image its label, (B,).

    Args:
        classifier: the classifier under attack.
        images: (B, 3, H, W) in [0, 1].
        labels: the index of each image's class, (B,).
        attack: "clean" for none; "pgd" on the cross-entropy; or "autoattack" (Croce & Hein, ICML
            2020) by pyautoattack, which uses only the threat model's norm and eps.
        threat_model: what the attack may do.
        seed: of the attack's random numbers.

    Raises:
        ClipagError: there is no such attack, pyautoattack is not installed, or there are too few
            classes for it.
    """
    if attack not in ATTACKS:
        raise ClipagError(f"`attack` is {attack!r}: choose from {', '.join(ATTACKS)}.")
    if attack == "pgd":

        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(classifier(x), labels, reduction="sum")

        images = pgd(images, loss, threat_model, torch.Generator().manual_seed(seed))
    elif attack == "autoattack":
        images = _autoattack(classifier, images, labels, threat_model, seed)
    with torch.no_grad():
        is_correct: Tensor = classifier(images).argmax(dim=1) == labels
    return is_correct


def _autoattack(
    classifier: ZeroShot, images: Tensor, labels: Tensor, threat_model: ThreatModel, seed: int
) -> Tensor:
    module = library("pyautoattack", "eval")
    count = len(classifier.classes)
    if count < 4:
        # Its DLR loss compares the four highest logits.
        raise ClipagError(f"AutoAttack takes at least 4 classes, and there are {count}.")
    norm = "Linf" if isinstance(threat_model, Linf) else "L2"
    adversary = module.AutoAttack(
        classifier, norm=norm, eps=threat_model.eps, seed=seed, device=images.device
    )
    for targeted in (adversary.apgd_targeted, adversary.fab):
        targeted.n_target_classes = min(TARGET_CLASSES, count - 1)
    adversary.verbose = False
    with torch.enable_grad():
        result = adversary.run_standard_evaluation(images, labels, batch_size=len(images))
    attacked: Tensor = result[0] if isinstance(result, tuple) else result
    return attacked


def labelled_pictures(folder: Path) -> tuple[list[str], list[tuple[Path, int]], list[str]]:
    """Return the classes of a folder, its pictures with their class indices, and the problems.

    Each subfolder is a class and gives it its name, as in torchvision's `ImageFolder`, with spaces
    for - and _. A picture that cannot be read is left out, and a sentence in the problems says so.

    Raises:
        ClipagError: there are fewer than two classes with pictures that can be read.
    """
    if not folder.is_dir():
        raise ClipagError(f"There is no folder {folder}: name one with a folder for each class.")
    classes: list[str] = []
    pictures, problems = [], []
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            contents = read_folder(subfolder)
        except ClipagError as error:
            problems.append(f"No class: {error}")
            continue
        problems += contents.problems
        pictures += [(path, len(classes)) for path in contents.readable]
        classes.append(re.sub(r"[-_]+", " ", subfolder.name))
    if len(classes) < 2:
        raise ClipagError(
            f"{folder} holds {len(classes)} folders with pictures: name one with a folder for each "
            "class, and at least two."
        )
    return classes, pictures, problems


def robustness_table(
    folder: Path, models: Sequence[str], settings: RobustnessSettings, compute: ComputeOptions
) -> Report:
    """Measure the zero-shot accuracy of models, in hundredths, a column for each.

    Args:
        folder: pictures in a subfolder for each class, as `labelled_pictures` reads them.
        models: as `load_model` takes them.
        settings: attacks and texts.
        compute: device and batch size.

    Raises:
        ClipagError: there are fewer than two classes, two models have the same name, or scipy is
            not installed.
    """
    library("scipy.stats", "eval")  # fail before hours of attacks, not after them
    report = Report()
    classes, pictures, report.notes = labelled_pictures(folder)
    texts = [settings.text_of(name) for name in classes]
    for name in models:
        model = load_model(name, compute.device)
        require_new_name(model.name, report.columns)
        classifier = ZeroShot(model, texts)
        results = _attack_pictures(classifier, pictures, settings, compute, report)
        report.columns[model.name] = _accuracies(results, settings.titles())
    return report


def _attack_pictures(
    classifier: ZeroShot,
    pictures: Sequence[tuple[Path, int]],
    settings: RobustnessSettings,
    compute: ComputeOptions,
    report: Report,
) -> dict[str, list[Tensor]]:
    """Return for each attack, batch by batch, which pictures keep their label.

    An attack that cannot be computed is left out and noted in the report.
    """
    titles = settings.titles()
    results: dict[str, list[Tensor]] = {attack: [] for attack in titles}
    firsts = range(0, len(pictures), compute.batch)
    for first in tqdm(firsts, desc=classifier.model.name, unit="batch"):
        chunk = pictures[first : first + compute.batch]
        images = torch.stack([read_square(path, settings.size) for path, _ in chunk])
        images = images.to(compute.device)
        labels = torch.tensor([label for _, label in chunk], device=compute.device)
        for attack in [*results]:
            try:
                is_correct = correct_under_attack(
                    classifier, images, labels, attack, settings.threat_model, settings.seed
                )
            except ClipagError as error:
                report.not_measured(titles[attack], error)
                del results[attack]
            else:
                results[attack].append(is_correct)
    return results


def _accuracies(
    results: Mapping[str, Sequence[Tensor]], titles: Mapping[str, str]
) -> list[Measurement]:
    return [
        mean("accuracy", titles[attack], 100 * torch.cat([*batches]).float().cpu())
        for attack, batches in results.items()
    ]
