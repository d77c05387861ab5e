"""Judges: models that did not guide, and what they think of pictures."""

import hashlib
from collections.abc import Iterable, Sequence
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
from .sharing import shard, wait_for_all

# The paper's two, with the names that Table 1 gives them.
JUDGES = {
    "ConvNeXt": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K",
    "ViT-H/14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
AESTHETIC_HEAD = "sac+logos+ava1-l14-linearMSE.pth"


class ClipJudge:
    """A CLIP that judges.

    Args:
        model: the CLIP.
        name: what tables call it, by default its own name.
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
        """Return unit-length embeddings (N, D) of texts; what is over 77 tokens is cut."""
        return text_embeddings(self.model, texts, truncate=True).float().cpu()


def fingerprint(model: ClipagModel) -> str:
    """Return a digest of a model's weights: names may be given twice, and files made again."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def load_judge(name: str, device: str | torch.device = "cpu") -> ClipJudge:
    """Load a judge: "ConvNeXt" or "ViT-H/14", the paper's two, or what `load_model` takes.

    Raises:
        ClipagError: there is none of this name, or it cannot be had.
    """
    return ClipJudge(load_model(JUDGES.get(name, name), device), name if name in JUDGES else None)


def embed(judge: ClipJudge, paths: Sequence[Path], kept: Path, batch: int = BATCH) -> Tensor:
    """Return a judge's embeddings (N, D) of pictures.

    Each batch is written to the folder `kept` as it comes, and found there the next time. Under
    torchrun each process takes its share of the batches, and all wait for the last.
    """
    from safetensors.torch import load_file, save_file

    rank, world = shard()
    kept.mkdir(parents=True, exist_ok=True)
    files = []
    chunks = [paths[i : i + batch] for i in range(0, len(paths), batch)]
    bar = tqdm(chunks, desc=judge.name, unit="batch", disable=len(chunks) < 3 or rank > 0)
    for number, chunk in enumerate(bar):
        files.append(kept / f"{slug(judge.name)}-{judge.weights}-{_digest(chunk)}.safetensors")
        if number % world == rank and not files[-1].exists():
            (images,) = batches(chunk, judge.side, batch)
            with write_beside(files[-1]) as temporary:
                save_file({"z": judge.embed_images(images)}, temporary)
    wait_for_all()
    return torch.cat([load_file(file)["z"] for file in files])


def _digest(paths: Sequence[Path]) -> str:
    """Name the very files, so that no old picture is taken for a new one."""
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    facts = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def guided_by(judge: ClipJudge, pictures: Iterable[Picture]) -> str | None:
    """Return a warning if the judge, by any name, guided pictures that it is to judge."""
    guilty = sum(
        picture.facts.get("model") == judge.model.name
        or picture.facts.get("weights") == judge.weights
        for picture in pictures
    )
    if not guilty:
        return None
    return (
        f"{judge.name} guided {guilty} of these pictures: it likes them whatever they show, so its "
        "figures say nothing of them."
    )


class AestheticHead(nn.Sequential):
    """LAION's aesthetic predictor, 1 to 10, on CLIP's embeddings: linear layers one after another.

    The paper's is christophschuhmann/improved-aesthetic-predictor (on ViT-L/14).
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise ClipagError(f"There is no file {path}: download {AESTHETIC_HEAD}.")
        state = untrusted.read(path)
        layers = [key.removesuffix("weight") for key in state if key.endswith("weight")]
        try:
            super().__init__(*(nn.Linear(*state[f"{x}weight"].shape[::-1]) for x in layers))
            for layer, x in zip(self, layers, strict=True):
                own = {part: state[f"{x}{part}"] for part in ("weight", "bias")}
                architecture.fill(layer, own, str(path))
            if not layers or self[-1].out_features != 1:
                raise ValueError("it does not end in one number")
        except (ClipagError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ClipagError(
                f"{path} is no aesthetic predictor: download {AESTHETIC_HEAD}."
            ) from error
        self.requires_grad_(False)

    def scores(self, z: Tensor) -> Tensor:
        """Return scores (N,) of unit-length embeddings (N, D).

        Raises:
            ClipagError: the head belongs to a CLIP of another width.
        """
        if z.shape[1] != self[0].in_features:
            raise ClipagError(
                f"The aesthetic predictor takes {self[0].in_features} numbers, but its CLIP gives "
                f"{z.shape[1]}: name the CLIP that it was made for."
            )
        scores: Tensor = self(z)[:, 0]
        return scores
