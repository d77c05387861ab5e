"""Zero-shot accuracy, clean and under attack: the paper's threat models on any labelled folder."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attack import Linf, ThreatModel, pgd
from ..base import ClipagModel, embed_images
from ..errors import ClipagError, library
from ..targets import text_embeddings
from .folders import readable

ATTACKS = ("clean", "pgd", "autoattack")


class ZeroShot(nn.Module):
    """A classifier whose classes are texts: (B, 3, H, W) in [0, 1] → logits (B, C).

    Args:
        model: the CLIP.
        texts: one a class, as "a photo of a cat".
    """

    def __init__(self, model: ClipagModel, texts: Sequence[str]):
        super().__init__()
        self.model = model
        self.register_buffer("goals", text_embeddings(model, texts), persistent=False)
        self.goals: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) at the model's own temperature."""
        z = embed_images(self.model, images)
        logits: Tensor = self.model.logit_scale.exp() * z @ self.goals.T
        return logits


def correct(
    classifier: ZeroShot,
    images: Tensor,
    labels: Tensor,
    attack: str,
    threat_model: ThreatModel,
    seed: int = 0,
) -> Tensor:
    """Return which of the images (B, 3, H, W) keep their label (B,) under an attack.

    Args:
        classifier: what is attacked.
        images: in [0, 1].
        labels: the right classes.
        attack: "clean" for none; "pgd", on the cross-entropy; or "autoattack" (Croce & Hein,
            ICML 2020) by pyautoattack, which takes the threat model's norm and eps alone.
        threat_model: what the attack may do.
        seed: of the attack's random numbers.

    Raises:
        ClipagError: there is no such attack, pyautoattack is not installed, or it cannot
            attack so few classes.
    """
    if attack not in ATTACKS:
        raise ClipagError(f"attack is {attack!r}: choose from {', '.join(ATTACKS)}.")
    if attack == "pgd":

        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(classifier(x), labels, reduction="sum")

        images = pgd(images, loss, threat_model, torch.Generator().manual_seed(seed))
    elif attack == "autoattack":
        images = _autoattack(classifier, images, labels, threat_model, seed)
    with torch.no_grad():
        right: Tensor = classifier(images).argmax(dim=1) == labels
    return right


def _autoattack(
    classifier: ZeroShot, images: Tensor, labels: Tensor, threat_model: ThreatModel, seed: int
) -> Tensor:
    module = library("pyautoattack", "eval")
    classes = len(classifier.goals)
    if classes < 4:
        # Its DLR loss compares the highest four logits.
        raise ClipagError(f"AutoAttack takes at least 4 classes: here are {classes}.")
    norm = "Linf" if isinstance(threat_model, Linf) else "L2"
    adversary = module.AutoAttack(
        classifier, norm=norm, eps=threat_model.eps, seed=seed, device=images.device
    )
    # The targeted attacks go through nine wrong classes, where there are so many.
    for part in (adversary.apgd_targeted, adversary.fab):
        part.n_target_classes = min(9, classes - 1)
    adversary.verbose = False
    with torch.enable_grad():
        found = adversary.run_standard_evaluation(images, labels, batch_size=len(images))
    attacked: Tensor = found[0] if isinstance(found, tuple) else found
    return attacked


def labelled_pictures(folder: Path) -> tuple[list[str], list[tuple[Path, int]], list[str]]:
    """Return a folder's classes, each picture with its class, and what is amiss.

    The names of its folders are the classes', as torchvision's `ImageFolder` has them, with
    spaces for - and _. A picture that cannot be read is left out, and there is a sentence for it.

    Raises:
        ClipagError: there are not at least two classes with pictures that can be read.
    """
    if not folder.is_dir():
        raise ClipagError(f"There is no folder {folder}: name one with a folder for each class.")
    classes: list[str] = []
    pictures, amiss = [], []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            found, skipped = readable(inner)
        except ClipagError as error:
            amiss.append(f"No class: {error}")
            continue
        amiss += skipped
        pictures += [(path, len(classes)) for path, facts in found.items() if facts is not None]
        classes.append(re.sub(r"[-_]+", " ", inner.name))
    if len(classes) < 2:
        raise ClipagError(
            f"{folder} holds {len(classes)} folders with pictures: name one with a folder for each "
            "class, and at least two."
        )
    return classes, pictures, amiss
