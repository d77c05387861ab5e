"""Probe what image embeddings hold (unCLIP, Ramesh et al., 2022, section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .arguments import RunOptions
from .ascent import Ascent
from .base import ClipagModel, embed_images
from .errors import ClipagError
from .evaluation.folders import batches, read_folder
from .inversion import Inversion, Picture, draw_embeddings, read_sources
from .latents import EMBEDDING_FILES, PrincipalComponents, read_embeddings
from .pictures import from_pil, open_picture, to_pil
from .targets import text_embeddings

LABEL_WIDTH, LABEL_HEIGHT = 0.8, 0.25  # of a pasted word, as shares of the side


@torch.no_grad()
def embed_corpus(corpus: Path, model: ClipagModel, progress: bool = True) -> Tensor:
    """Return unit-length embeddings (N, D) of a folder of pictures, or of a file of embeddings.

    Args:
        corpus: a folder, or a .npy or .safetensors file that `latents.read_embeddings` reads.
        model: encodes the pictures.
        progress: show a progress bar.

    Raises:
        ClipagError: there is no picture that can be read, or the embeddings are not the model's.
    """
    if corpus.suffix in EMBEDDING_FILES:
        embeddings = read_embeddings(corpus)
        if embeddings.ndim != 2 or embeddings.shape[1] != model.visual.output_dim:
            raise ClipagError(
                f"{corpus} holds embeddings of shape {tuple(embeddings.shape)}, but those of "
                f"{model.name} are (N, {model.visual.output_dim}): encode pictures with this model."
            )
        return F.normalize(embeddings.to(model.device), dim=1)
    paths = read_folder(corpus).readable
    parts = [
        embed_images(model, images.to(model.device))
        for images in tqdm(
            batches(paths, max(16, model.visual.native_size)), "encoding", disable=not progress
        )
    ]
    return torch.cat(parts)


def draw_components(
    picture: Picture,
    components: PrincipalComponents,
    counts: Sequence[int],
    model: ClipagModel,
    how: Inversion = Inversion(),
    options: RunOptions = RunOptions(),
) -> Ascent:
    """Draw a picture's embedding from growing numbers of principal components.

    unCLIP's figure 7: the first components say what kind of thing a picture shows, the later ones
    say how it looks.

    Args:
        picture: a file or a PIL picture, whose middle square is used.
        components: fitted on embeddings of the same model.
        counts: numbers of components, each giving a picture from the same start.
        model: the model that encodes and draws.
        how, options: as for `inversion.invert`.

    Returns:
        The ascent. Its images are those of each count in order, each once for each seed.

    Raises:
        ClipagError: a count is out of range, the components are another model's, or the file cannot
            be read.
    """
    if not counts:
        raise ClipagError("There is no number of components: give at least one.")
    for count in counts:
        if not 1 <= count <= len(components.directions):
            raise ClipagError(
                f"`components` has {count}: choose from 1 to {len(components.directions)}, which "
                "the corpus allows."
            )
    if len(components.mean) != model.visual.output_dim:
        raise ClipagError(
            f"The components have {len(components.mean)} numbers, but embeddings of {model.name} "
            f"have {model.visual.output_dim}: fit them with this model."
        )
    sources = read_sources([picture], model, how.size)
    with torch.no_grad():
        z = embed_images(model, sources)
    coordinates = components.coordinates(z)
    embeddings = torch.cat([components.reconstruct(coordinates[:, :count]) for count in counts])
    return draw_embeddings(embeddings, model, how, sources=sources, anchor=z[0], options=options)


def with_word(picture: Image.Image, word: str) -> Image.Image:
    """Return a picture with a white label across its middle that carries a word.

    Raises:
        ClipagError: the word is empty.
    """
    if not word.strip():
        raise ClipagError("The word to paste is empty: write one.")
    labelled = picture.convert("RGB")
    side = min(labelled.size)
    width, height = LABEL_WIDTH * side, LABEL_HEIGHT * side
    left, top = (labelled.width - width) / 2, (labelled.height - height) / 2
    draw = ImageDraw.Draw(labelled)
    draw.rectangle((left, top, left + width, top + height), fill="white", outline="black")
    size = 0.8 * height
    size *= min(1.0, 0.9 * width / draw.textlength(word, ImageFont.load_default(size)))
    centre = (labelled.width / 2, labelled.height / 2)
    draw.text(centre, word, "black", ImageFont.load_default(max(size, 1)), anchor="mm")
    return labelled


@dataclass(frozen=True)
class TypographicAttack:
    """What a word pasted on a picture does to a model (Goh et al., "Multimodal Neurons", 2021).

    Attributes:
        texts: what the model chose from.
        pictures: the picture's middle square, and the same with the word.
        probabilities: of each text for each of the pictures, (2, texts).
        ascent: the inversions of both pictures.
    """

    texts: list[str]
    pictures: tuple[Image.Image, Image.Image]
    probabilities: Tensor
    ascent: Ascent


def attack_by_word(
    picture: Picture,
    word: str,
    texts: Sequence[str],
    model: ClipagModel,
    how: Inversion = Inversion(),
    options: RunOptions = RunOptions(),
) -> TypographicAttack:
    """Paste a word on a picture; return what the model takes both for, and what it draws of both.

    Args:
        picture: a file or a PIL picture, whose middle square is used.
        word: what is pasted, which is also one of the texts to choose from.
        texts: what the picture may show.
        model: the model that is attacked, and draws.
        how: of the inversions, with one seed.
        options: as for `inversion.invert`.

    Raises:
        ClipagError: the word or a text is empty, there is no text beside the word, or the file
            cannot be read.
    """
    choices = list(dict.fromkeys([*texts, word]))
    if len(choices) < 2:
        raise ClipagError("There is nothing but the word to choose from: name what is shown, too.")
    clean = to_pil(from_pil(open_picture(picture), (how.size, how.size)))
    labelled = with_word(clean, word)
    sources = read_sources([clean, labelled], model, how.size)
    with torch.no_grad():
        z = embed_images(model, sources)
        logits = model.logit_scale.exp() * z @ text_embeddings(model, choices, options.truncate).T
    return TypographicAttack(
        choices,
        (clean, labelled),
        logits.softmax(dim=1),
        draw_embeddings(
            z,
            model,
            how,
            sources=sources,
            options=options,
        ),
    )
