"""The metrics of the paper's Tables 1 and 2, and LPIPS."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ClipagError, library
from .report import Measurement, mean

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
ALEXNET_WEIGHTS = "alexnet-owt-7be5be79.pth"
ROWS_AT_ONCE = 1024  # pictures that are compared with all prompts at once


def similarities_and_ranks(
    images: Tensor, texts: Tensor, prompt_indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each picture's cosine to its prompt, and how many prompts have a higher one, (N,).

    Args:
        images: unit-length embeddings (N, D) of the pictures.
        texts: unit-length embeddings (P, D) of all prompts.
        prompt_indices: the index of each picture's prompt, (N,).
    """
    similarities, ranks = [], []
    for z, indices in zip(
        images.split(ROWS_AT_ONCE), prompt_indices.split(ROWS_AT_ONCE), strict=True
    ):
        cosines = z @ texts.T
        to_prompt = cosines.gather(1, indices[:, None])
        similarities.append(to_prompt[:, 0])
        ranks.append((cosines > to_prompt).sum(dim=1))
    return torch.cat(similarities), torch.cat(ranks)


def judged(judge: str, images: Tensor, texts: Tensor, prompt_indices: Tensor) -> list[Measurement]:
    """Return the mean similarity, CLIPScore, R-Prec and top 5 of pictures, all times 100.

    R-Prec is the share of pictures whose prompt the judge ranks first among all prompts. CLIPScore
    is 2.5 · max(cosine, 0) (Hessel et al., EMNLP 2021). The paper's tables give the similarity.

    Args:
        judge: the name of the model that made the embeddings.
        images: unit-length embeddings (N, D) of the pictures.
        texts: unit-length embeddings (P, D) of all prompts.
        prompt_indices: the index of each picture's prompt, (N,).
    """
    similarity, rank = similarities_and_ranks(images, texts, prompt_indices)
    values = {
        "similarity": similarity,
        "CLIPScore": 2.5 * similarity.clamp_min(0),
        "R-Prec": (rank == 0).float(),
        "top 5": (rank < 5).float(),
    }
    return [mean(name, judge, 100 * of_pictures) for name, of_pictures in values.items()]


def preference(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return whether each score is above its rival's, (N,): 1, 0, or ½ for a draw."""
    return (ours > theirs).float() + 0.5 * (ours == theirs).float()


def inception(feature: str, weights: Path | None = None) -> nn.Module:
    """Return torch-fidelity's InceptionV3 up to a feature.

    Args:
        feature: "2048" for FID, or "logits_unbiased" for the Inception Score.
        weights: a copy of its weights; None to download them.

    Raises:
        ClipagError: the weights cannot be read or downloaded, or torch-fidelity is not installed.
    """
    library("torch_fidelity", "eval")
    network_class = library("torchmetrics.image.fid", "eval").NoTrainInceptionV3
    try:
        path = None if weights is None else str(weights)
        network: nn.Module = network_class("inception-v3-compat", [feature], path)
    except (OSError, RuntimeError) as error:
        raise ClipagError(
            f"InceptionV3's weights cannot be read or downloaded ({error}): name a copy of "
            f"{INCEPTION_WEIGHTS} with `inception`."
        ) from error
    return network


def fid(
    ours: Iterable[Tensor],
    real: Iterable[Tensor],
    network: nn.Module,
    device: str | torch.device = "cpu",
) -> float:
    """Return the Fréchet inception distance between batches of images in [0, 1], by torchmetrics.

    Raises:
        ClipagError: one side has fewer than 2 pictures.
    """
    module = library("torchmetrics.image.fid", "eval")
    metric = module.FrechetInceptionDistance(_TakesFloats(network)).to(device)
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
    metric = module.InceptionScore(_TakesFloats(network), splits=splits).to(device)
    for images in ours:
        metric.update(images)
    score, _ = metric.compute()
    return float(score)


class _TakesFloats(nn.Module):
    """A network of uint8 images (B, 3, H, W), wrapped to take images in [0, 1]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        # The metric has moved the network to its device.
        images = images.to(next(self.network.parameters(), images).device)
        features: Tensor = self.network((images * 255).round().to(torch.uint8))
        return features


def lpips(
    ours: Iterable[Tensor], theirs: Iterable[Tensor], device: str | torch.device = "cpu"
) -> Tensor:
    """Return LPIPS (N,) between pairs of images in [0, 1], by torchmetrics with AlexNet.

    Args:
        ours: batches of images.
        theirs: batches of the same sizes.
        device: where it is computed.

    Raises:
        ClipagError: AlexNet's weights cannot be downloaded.
    """
    module = library("torchmetrics.image.lpip", "eval")
    try:
        metric = module.LearnedPerceptualImagePatchSimilarity(
            "alex", normalize=True, reduction="none"
        ).to(device)
    except OSError as error:
        raise ClipagError(
            f"AlexNet's weights, {ALEXNET_WEIGHTS}, cannot be downloaded ({error})."
        ) from error
    distances = [
        metric(a.to(device), b.to(device)).reshape(-1).cpu()
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.cat(distances)
