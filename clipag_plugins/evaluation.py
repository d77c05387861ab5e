"""How well pictures show their prompts: the paper's measures, by judges that did not guide.

Similarity and R-Prec by any CLIP, CLIPScore, the LAION aesthetic score and its pairwise
preference (Ganz & Elad, WACV 2024, Table 1), Inception Score and FID (Table 2), and LPIPS, the
last three by torchmetrics. What is not about a single picture has no confidence interval.
"""

import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from . import architecture, checkpoint
from .ascent import Ascent
from .errors import ClipagError, library
from .files import slug, write_beside, write_json
from .guide import text_embeddings
from .model import INPUT_RESOLUTION, ClipagModel, load_clipag, normalize
from .sampler import read_picture, read_square, save_png, to_pil

# The paper's two, with the names that Table 1 gives them.
JUDGES = {
    "ConvNeXt": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K",
    "ViT-H/14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
AESTHETIC_HEAD = "sac+logos+ava1-l14-linearMSE.pth"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
RESAMPLES, CONFIDENCE = 2000, 0.95
BATCH = 32


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
    """Load a judge: "ConvNeXt" or "ViT-H/14", the paper's two, or what `load_clipag` takes.

    Raises:
        ClipagError: there is none of this name, or it cannot be had.
    """
    return ClipJudge(load_clipag(JUDGES.get(name, name), device), name if name in JUDGES else None)


@dataclass(frozen=True)
class Picture:
    """A picture to judge, the number of its prompt, and the facts that its file carries."""

    path: Path
    prompt: int
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A figure of a table: its mean over `pictures`, and the bootstrap's 95 % interval."""

    metric: str
    judge: str
    value: float
    low: float | None
    high: float | None
    pictures: int

    def __str__(self) -> str:
        digits = 1 if abs(self.value) >= 10 else 2
        if self.low is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass
class Report:
    """What was measured, a column for each set of pictures; and what was not, and why."""

    columns: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path, name: str) -> None:
        """Write {name}.json and the table {name}.md to a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", asdict(self))
        with write_beside(folder / f"{name}.md") as temporary:
            temporary.write_text(self.table() + "\n", encoding="utf-8")

    def table(self) -> str:
        """Return a Markdown table, a line for each metric and judge, and the notes below it."""
        found = {(r.metric, r.judge): "" for rows in self.columns.values() for r in rows}
        lines = [f"| metric | judge | {' | '.join(self.columns)} |"]
        lines.append("|---" * (2 + len(self.columns)) + "|")
        for metric, judge in found:
            cells = []
            for rows in self.columns.values():
                mine = [str(r) for r in rows if (r.metric, r.judge) == (metric, judge)]
                cells.append(mine[0] if mine else "–")
            lines.append(f"| {metric} | {judge} | {' | '.join(cells)} |")
        return "\n".join([*lines, *(f"\n*{note}*" for note in self.notes)])


def read_prompts(path: Path, count: int | None = None, seed: int = 0) -> list[str]:
    """Read prompts: one a line, or the captions of a COCO annotations file (.json).

    With a `count`, only so many of them, drawn at random by the seed.

    Raises:
        ClipagError: there is no such file, no prompt in it, or fewer than `count`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        is_coco = path.suffix == ".json"
        lines = (
            [annotation["caption"] for annotation in json.loads(text)["annotations"]]
            if is_coco
            else text.splitlines()
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClipagError(
            f"{path} is no text file with a prompt on each line, nor COCO's captions as .json."
        ) from error
    prompts = [" ".join(line.split()) for line in lines if line.strip()]
    if not prompts:
        raise ClipagError(f"{path} has no prompt: write one on each line.")
    if count is None:
        return prompts
    if not 1 <= count <= len(prompts):
        raise ClipagError(f"count is {count}, but {path} has {len(prompts)} prompts.")
    return random.Random(seed).sample(prompts, count)


def readable(folder: Path) -> tuple[dict[Path, dict[str, str] | None], list[str]]:
    """Return a folder's pictures with the facts that each file carries, and what is amiss.

    They are sorted by name, numbers in them by their value. A picture that cannot be read has
    None for its facts, and there is a sentence for it.

    Raises:
        ClipagError: there is no picture, or none that can be read.
    """
    if not folder.is_dir():
        raise ClipagError(f"There is no folder {folder}: name one with pictures.")
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    if not paths:
        raise ClipagError(f"There is no picture in {folder}.")
    found: dict[Path, dict[str, str] | None] = {}
    skipped = []
    bar = tqdm(sorted(paths, key=_natural), desc="reading", disable=len(paths) < 1000)
    for path in bar:
        try:
            read_picture(path)
        except ClipagError as error:
            skipped.append(f"Skipped: {error}")
            found[path] = None
            continue
        with Image.open(path) as file:
            info = {str(k): v for k, v in file.info.items()}
        found[path] = {k: v for k, v in info.items() if isinstance(v, str)}
    if len(skipped) == len(paths):
        raise ClipagError(f"None of the {len(paths)} pictures in {folder} can be read.")
    if skipped:
        skipped.append(f"{folder}: {len(skipped)} of {len(paths)} pictures were skipped.")
    return found, skipped


def find_pictures(folder: Path, prompts: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Return the pictures of a folder with their prompts, and what `readable` finds amiss.

    A picture of this package carries its prompt; others are called after theirs. Where none
    says its own, they come in the order of their prompts, unreadable ones included.

    Raises:
        ClipagError: there is no picture, or it cannot be told which prompt is whose.
    """
    found, skipped = readable(folder)
    number = {prompt: i for i, prompt in reversed(list(enumerate(prompts)))}
    slugs = {slug(prompt): i for prompt, i in number.items()}

    def of(path: Path, facts: Mapping[str, str]) -> int | None:
        without_seed = re.sub(r"-\d+$", "", path.stem)
        for known, name in (
            (number, facts.get("prompt", "")),
            (number, path.stem),
            (slugs, slug(without_seed)),
        ):
            if name in known:
                return known[name]
        return None

    numbers = [of(path, facts or {}) for path, facts in found.items()]
    if all(mine is None for mine in numbers):
        if len(prompts) < len(found):
            raise ClipagError(
                f"There are {len(prompts)} prompts for the {len(found)} pictures of {folder}, none "
                "of which says its own: give a line for each, in the order of their names."
            )
        numbers = list(range(len(found)))
    pictures = []
    for (path, facts), mine in zip(found.items(), numbers, strict=True):
        if facts is None:
            continue
        if mine is None:
            raise ClipagError(f"{path} shows none of the prompts, while others in {folder} do.")
        pictures.append(Picture(path, mine, facts))
    return pictures, skipped


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def batches(paths: Sequence[Path], side: int, size: int = BATCH) -> Iterator[Tensor]:
    """Yield pictures as images (≤ size, 3, side, side) in [0, 1]."""
    for first in range(0, len(paths), size):
        yield torch.stack([read_square(path, side) for path in paths[first : first + size]])


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


def mean(metric: str, judge: str, values: Tensor) -> Row:
    """Return a mean with the bootstrap's percentile interval: none for a single value.

    Raises:
        ClipagError: scipy is not installed.
    """
    low = high = None
    if len(values) > 1:
        found = library("scipy.stats", "eval").bootstrap(
            (values.double().numpy(),),
            _mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            batch=50,
            rng=0,
        )
        low, high = map(float, found.confidence_interval)
    return Row(metric, judge, values.double().mean().item(), low, high, len(values))


def compared(metric: str, judge: str, scores: Mapping[str, Tensor]) -> dict[str, list[Row]]:
    """Return the mean of each column's scores (N,), and how much above the first's it is.

    The scores are pairs, of one picture or text each, and so are their differences.
    """
    rows = {label: [mean(metric, judge, values)] for label, values in scores.items()}
    first, *others = scores
    for label in others:
        above = scores[label] - scores[first]
        rows[label].append(mean(f"{metric}, above {first}", judge, above))
    return rows


def _mean(values: Any, axis: int) -> Any:
    return values.mean(axis=axis)


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
        state = checkpoint.read(path)
        layers = [key.removesuffix("weight") for key in state if key.endswith("weight")]
        try:
            super().__init__(*(nn.Linear(*state[f"{x}weight"].shape[::-1]) for x in layers))
            for layer, x in zip(self, layers, strict=True):
                own = {part: state[f"{x}{part}"] for part in ("weight", "bias")}
                architecture.fill(layer, own, str(path))
            if not layers or self[-1].out_features != 1:
                raise ValueError("it does not end in one number")
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
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


def draw_missing(
    draw: Callable[[list[str]], Ascent],
    prompts: Sequence[str],
    folder: Path,
    facts: Mapping[str, object],
    batch: int,
) -> None:
    """Draw the prompts that have no picture in a folder yet, as 00000.png and so on.

    What was drawn stays when this is stopped, and is not drawn again. Under torchrun each
    process draws its share, and all wait for the last.

    Args:
        draw: makes the pictures of a batch of prompts.
        prompts: all of them.
        folder: made if need be; its settings.json says what `facts` its pictures have in common.
        facts: such as model, seed and steps; each picture carries them, and its prompt.
        batch: prompts that are drawn at once.

    Raises:
        ClipagError: the folder has pictures that were drawn with other facts or prompts.
        KeyboardInterrupt: an ascent was ended by Ctrl-C.
    """
    rank, world = shard()
    settings = json.dumps({**facts, "prompts": list(prompts)}, indent=1, default=str)
    lock = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if lock.exists() and lock.read_text(encoding="utf-8") != settings:
        raise ClipagError(
            f"The pictures in {folder} were drawn with other settings or prompts: name another "
            "folder, or remove it."
        )
    with write_beside(lock) as temporary:
        temporary.write_text(settings, encoding="utf-8")
    mine = [i for i in range(len(prompts)) if i % world == rank]
    missing = [i for i in mine if not (folder / f"{i:05}.png").exists()]
    for first in tqdm(
        range(0, len(missing), batch), desc=folder.name, unit="batch", disable=rank > 0
    ):
        numbers = missing[first : first + batch]
        ascent = draw([prompts[i] for i in numbers])
        if ascent.interrupted:
            raise KeyboardInterrupt
        for i, image in zip(numbers, ascent.images, strict=True):
            own = {"prompt": prompts[i], **facts, "Software": "clipag-plugins"}
            save_png(to_pil(image), folder / f"{i:05}.png", own)
    wait_for_all()


def shard() -> tuple[int, int]:
    """Return the number of this process under torchrun, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_all() -> None:
    """Wait under torchrun until every process has come here."""
    if shard()[1] == 1:
        return
    from torch import distributed

    if not distributed.is_initialized():
        # One process may draw for hours longer than another.
        distributed.init_process_group("gloo", timeout=timedelta(days=7))
    distributed.barrier()
