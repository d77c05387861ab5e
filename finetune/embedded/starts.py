r"""Fit the mixture of Gaussians that the sampler starts from.

    python -m clipag_plugins.finetune.embedded.starts --work build/weights
    python -m clipag_plugins.finetune.embedded.starts \
        --folder tiny-imagenet-200/train --out tiny.safetensors

Pictures are resized to 16 × 16, and one Gaussian is fitted to each class (CLIPAG supplement,
section 1.3). The classes of `--folder` are its subfolders, as in torchvision's ImageFolder. The
corpus has captions instead of classes, so its training captions' embeddings are clustered into 200
classes by k-means; the paper has 200 too. Only the 16 strongest directions of each covariance are
stored, since the full matrices would have 200 × 768 × 768 numbers.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from clipag_plugins.errors import exit_on_user_error
from clipag_plugins.files import write_beside
from clipag_plugins.mixture import SIDE

CLASSES = 200
RANK = 16


def corpus_classes(work: Path, seed: int) -> Iterator[Tensor]:
    """Yield the training pictures of each cluster of captions on white, (n, 3, 16, 16)."""
    from sklearn.cluster import KMeans

    from clipag_plugins.finetune.embedded.image_tower import EmbeddedCorpus, Pictures

    trainer = EmbeddedCorpus(work)
    pictures = Pictures(trainer.pixels, SIDE)
    allowed = torch.nonzero(trainer.allowed).squeeze(1)
    kmeans = KMeans(CLASSES, n_init=1, random_state=seed)
    cluster = torch.full((len(trainer.captions),), -1)
    labels = kmeans.fit_predict(trainer.embeddings[allowed].numpy())
    cluster[allowed] = torch.from_numpy(labels).long()
    cluster_of = cluster[trainer.caption_of[trainer.train]]
    for number in range(CLASSES):
        yield pictures.plain(trainer.train[cluster_of == number])


def folder_classes(folder: Path) -> Iterator[Tensor]:
    """Yield the pictures of each subfolder, (n, 3, 16, 16)."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    shrink = v2.Compose(
        [v2.ToImage(), v2.Resize((SIDE, SIDE), antialias=True), v2.ToDtype(torch.float32, True)]
    )
    dataset = ImageFolder(str(folder), shrink)
    targets = torch.tensor(dataset.targets)
    for number in range(len(dataset.classes)):
        yield torch.stack([dataset[int(i)][0] for i in torch.nonzero(targets == number)])


def fit(classes: Iterator[Tensor], out: Path) -> None:
    """Fit one Gaussian to each class, and write means and covariance factors to `out`.

    Args:
        classes: the pictures of each class, (n, 3, 16, 16) in [0, 1].
        out: a .safetensors file that `mixture.load` reads.
    """
    means, factors = [], []
    for images in classes:
        flat = images.flatten(1)
        centred = (flat - flat.mean(0)) / max(1, len(flat) - 1) ** 0.5
        _, strength, directions = torch.linalg.svd(centred, full_matrices=False)
        factor = (directions[:RANK] * strength[:RANK, None]).T
        means.append(flat.mean(0))
        factors.append(F.pad(factor, (0, RANK - factor.shape[1])))
    state = {"means": torch.stack(means).half(), "factors": torch.stack(factors).half()}
    with write_beside(out) as temporary:
        save_file(state, temporary)
    print(f"{len(means)} classes written to {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--folder", type=Path, help="an ImageFolder to fit instead of the corpus")
    parser.add_argument("--out", type=Path, help="default: gmm.safetensors in --work")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    destination = arguments.out or arguments.work / "gmm.safetensors"
    with exit_on_user_error():
        if arguments.folder:
            fit(folder_classes(arguments.folder), destination)
        else:
            fit(corpus_classes(arguments.work, arguments.seed), destination)
