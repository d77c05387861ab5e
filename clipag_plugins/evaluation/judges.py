"""Judges: models that score pictures and must not have guided them."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .. import architecture, untrusted
from ..base import INPUT_RESOLUTION, ClipagModel, normalize
from ..errors import ClipagError
from ..files import slug, write_beside
from ..hub import load_model
from ..targets import text_embeddings
from .folders import BATCH, Picture, batches
from .sharing import rank_and_world_size, wait_for_all

# The paper's two judges, under the names that its Table 1 gives them.
JUDGES = {
    "ConvNeXt": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K",
    "ViT-H/14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
AESTHETIC_HEAD = "sac+logos+ava1-l14-linearMSE.pth"


class ClipJudge:
    """A CLIP that judges pictures.

    Args:
        model: the CLIP.
        name: its name in tables; by default the model's name.
    """

    def __init__(self, model: ClipagModel, name: str | None = None):
        self.model = model
        self.name = name or model.name
        self.weights = fingerprint(model)
        self.side = max(INPUT_RESOLUTION, model.visual.native_size)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        z = self.model.encode_image(normalize(images.to(self.model.device)))
        return F.normalize(z.float(), dim=-1).cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length embeddings (N, D) of texts, which are cut after 77 tokens."""
        return text_embeddings(self.model, texts, truncate=True).float().cpu()


def fingerprint(model: ClipagModel) -> str:
    """Return a digest of a model's weights: different models may have the same name."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def load_judge(name: str, device: str | torch.device = "cpu") -> ClipJudge:
    """Load a judge: "ConvNeXt" or "ViT-H/14" (the paper's), or any name that `load_model` knows.

    Raises:
        ClipagError: there is no such model, or its weights cannot be read or downloaded.
    """
    return ClipJudge(load_model(JUDGES.get(name, name), device), name if name in JUDGES else None)


def embed(judge: ClipJudge, paths: Sequence[Path], cache: Path, batch: int = BATCH) -> Tensor:
    """Return a judge's embeddings (N, D) of pictures.

    Each batch is written to the folder `cache` as soon as it is computed, and read from there in
    the next call. Under torchrun each process computes its share of the batches and waits for the
    last process.
    """
    from safetensors.torch import load_file, save_file

    rank, world_size = rank_and_world_size()
    cache.mkdir(parents=True, exist_ok=True)
    files = []
    chunks = [paths[i : i + batch] for i in range(0, len(paths), batch)]
    bar = tqdm(chunks, desc=judge.name, unit="batch", disable=len(chunks) < 3 or rank > 0)
    for number, chunk in enumerate(bar):
        name = f"{slug(judge.name)}-{judge.weights}-{_digest_of_files(chunk)}.safetensors"
        files.append(cache / name)
        if number % world_size == rank and not files[-1].exists():
            (images,) = batches(chunk, judge.side, batch)
            with write_beside(files[-1]) as temporary:
                save_file({"z": judge.embed_images(images)}, temporary)
    wait_for_all()
    return torch.cat([load_file(file)["z"] for file in files])


def _digest_of_files(paths: Sequence[Path]) -> str:
    """Return a digest of paths, sizes and times, so that a replaced picture is embedded again."""
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    versions = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha256(repr(versions).encode()).hexdigest()[:16]


def guided_by(judge: ClipJudge, pictures: Iterable[Picture]) -> str | None:
    """Return a warning if the judge, under any name, guided some of the pictures."""
    count = sum(
        picture.metadata.get("model") == judge.model.name
        or picture.metadata.get("weights") == judge.weights
        for picture in pictures
    )
    if not count:
        return None
    return (
        f"{judge.name} guided {count} of these pictures: it likes them whatever they show, so its "
        "figures say nothing about them."
    )


class AestheticHead(nn.Sequential):
    """LAION's aesthetic predictor: linear layers that map CLIP embeddings to a score from 1 to 10.

    The paper uses christophschuhmann/improved-aesthetic-predictor, which belongs to ViT-L/14.

    Args:
        path: its weights.

    Raises:
        ClipagError: the file is missing, or does not hold such a predictor.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise ClipagError(f"There is no file {path}: download {AESTHETIC_HEAD}.")
        state = untrusted.read(path)
        prefixes = [key.removesuffix("weight") for key in state if key.endswith("weight")]
        shapes = [state[f"{prefix}weight"].shape for prefix in prefixes]
        no_predictor = ClipagError(f"{path} is no aesthetic predictor: download {AESTHETIC_HEAD}.")
        if (
            not shapes
            or any(len(shape) != 2 for shape in shapes)
            or any(before[0] != after[1] for before, after in pairwise(shapes))
            or shapes[-1][0] != 1
        ):
            raise no_predictor
        super().__init__(*(nn.Linear(shape[1], shape[0]) for shape in shapes))
        try:
            for layer, prefix in zip(self, prefixes, strict=True):
                keys = {part: f"{prefix}{part}" for part in ("weight", "bias")}
                weights = {part: state[key] for part, key in keys.items() if key in state}
                architecture.load_weights(layer, weights, str(path))
        except ClipagError as error:
            raise no_predictor from error
        self.requires_grad_(False)

    def scores(self, z: Tensor) -> Tensor:
        """Return the scores (N,) of unit-length embeddings (N, D).

        Raises:
            ClipagError: the predictor belongs to a CLIP of another width.
        """
        if z.shape[1] != self[0].in_features:
            raise ClipagError(
                f"The aesthetic predictor takes {self[0].in_features} numbers, but its CLIP gives "
                f"{z.shape[1]}: name the CLIP that it was made for."
            )
        scores: Tensor = self(z)[:, 0]
        return scores
