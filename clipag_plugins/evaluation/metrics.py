"""The measures of the paper's Tables 1 and 2, and LPIPS."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ClipagError, library
from .report import Row, mean


def similarities_and_ranks(images: Tensor, texts: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return each picture's cosine to its own prompt, and how many prompts are nearer, (N,).

    Args:
        images: unit-length embeddings (N, D).
        texts: those of all prompts, (P, D).
        own: the number of each picture's prompt, (N,).
    """
    similarity, rank = [], []
    for z, mine in zip(images.split(1024), own.split(1024), strict=True):
        every = z @ texts.T
        right = every.gather(1, mine[:, None])
        similarity.append(right[:, 0])
        rank.append((every > right).sum(dim=1))
    return torch.cat(similarity), torch.cat(rank)


def judged(judge: str, images: Tensor, texts: Tensor, own: Tensor) -> list[Row]:
    """Return similarity, CLIPScore, R-Prec and top 5, all in hundredths, of embedded pictures.

    Args:
        judge: whose embeddings they are.
        images: unit-length embeddings (N, D).
        texts: those of all prompts, (P, D).
        own: the number of each picture's prompt, (N,).

    R-Prec is how often the judge finds the right prompt among all. CLIPScore is Hessel et al.'s
    ("CLIPScore", EMNLP 2021): 2.5 times the cosine, and not below 0. The paper's Tables 1 and 2
    give the similarity.
    """
    similarity, rank = similarities_and_ranks(images, texts, own)
    measures = {
        "similarity": similarity,
        "CLIPScore": 2.5 * similarity.clamp_min(0),
        "R-Prec": (rank == 0).float(),
        "top 5": (rank < 5).float(),
    }
    return [mean(name, judge, 100 * values) for name, values in measures.items()]


def preference(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return whether each score is above its rival's, (N,): 1, 0, or ½ for a draw."""
    return (ours > theirs).float() + 0.5 * (ours == theirs).float()


def inception(feature: str, weights: Path | None = None) -> nn.Module:
    """Return torch-fidelity's InceptionV3, up to a feature: "2048" or "logits_unbiased".

    Raises:
        ClipagError: its weights, weights-inception-2015-12-05-6726825d.pth, cannot be had.
    """
    library("torch_fidelity", "eval")
    network = library("torchmetrics.image.fid", "eval").NoTrainInceptionV3
    try:
        path = None if weights is None else str(weights)
        found: nn.Module = network("inception-v3-compat", [feature], path)
    except (OSError, RuntimeError) as error:
        raise ClipagError(
            "weights-inception-2015-12-05-6726825d.pth cannot be had, which torch-fidelity "
            f"downloads from GitHub ({error}): bring a copy with --inception."
        ) from error
    return found


def fid(
    ours: Iterable[Tensor],
    real: Iterable[Tensor],
    network: nn.Module,
    device: str | torch.device = "cpu",
) -> float:
    """Return the Fréchet inception distance of batches of images in [0, 1], by torchmetrics.

    Raises:
        ClipagError: one side has fewer than 2 pictures.
    """
    module = library("torchmetrics.image.fid", "eval")
    metric = module.FrechetInceptionDistance(_Rounded(network)).to(device)
    for images in ours:
        metric.update(images, real=False)
    for images in real:
        metric.update(images, real=True)
    if min(int(metric.real_features_num_samples), int(metric.fake_features_num_samples)) < 2:
        raise ClipagError("FID compares distributions: it takes at least 2 pictures on each side.")
    return float(metric.compute())


def inception_score(
    ours: Iterable[Tensor],
    network: nn.Module,
    splits: int = 10,
    device: str | torch.device = "cpu",
) -> float:
    """Return the Inception Score of batches of images in [0, 1], by torchmetrics."""
    module = library("torchmetrics.image.inception", "eval")
    metric = module.InceptionScore(_Rounded(network), splits=splits).to(device)
    for images in ours:
        metric.update(images)
    score, _ = metric.compute()
    return float(score)


class _Rounded(nn.Module):
    """A network that takes images in [0, 1] as torch-fidelity's takes them, (B, 3, H, W) bytes."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        # To where the metric has taken the network.
        images = images.to(next(self.network.parameters(), images).device)
        features: Tensor = self.network((images * 255).round().to(torch.uint8))
        return features


def lpips(
    ours: Iterable[Tensor], theirs: Iterable[Tensor], device: str | torch.device = "cpu"
) -> Tensor:
    """Return LPIPS (N,) between batches of pictures, pair by pair, by torchmetrics (AlexNet).

    Raises:
        ClipagError: AlexNet's weights cannot be had.
    """
    module = library("torchmetrics.image.lpip", "eval")
    try:
        metric = module.LearnedPerceptualImagePatchSimilarity(
            "alex", normalize=True, reduction="none"
        ).to(device)
    except OSError as error:
        raise ClipagError(
            f"alexnet-owt-7be5be79.pth cannot be had, which torchvision downloads ({error})."
        ) from error
    parts = [
        metric(a.to(device), b.to(device)).reshape(-1).cpu()
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.cat(parts)
