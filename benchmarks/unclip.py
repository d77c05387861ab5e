"""unCLIP without a decoder: priors, inversions, variations and text diffs, by the judge.

    python -m benchmarks.unclip gap                  # priors' samples beside true embeddings
    python -m benchmarks.unclip priors diversity     # pictures with each prior and with none
    python -m benchmarks.unclip inversion variations diffs
    python -m benchmarks.unclip decoder --decoder FILE    # beside the VQGAN
    python -m benchmarks.unclip priors --count 100   # all prompts of each group

`--work` is the folder of the corpus; `--priors` holds what `clipag prior` trained on its training
pictures, in folders that are called as the kinds. Without a folder of its kind, the prior of the
package is measured, if there is one. The judge has guided nothing and shares no
weights with the models. Each part is kept in a file of its own.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipag_plugins.arguments import RunOptions
from clipag_plugins.base import ClipagModel, embed_images
from clipag_plugins.defaults import REFINEMENT_STEPS
from clipag_plugins.embedded import read_config
from clipag_plugins.finetune import prior as training
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.finetune.embedded.image_tower import Pictures
from clipag_plugins.finetune.settings import Source
from clipag_plugins.hub import load_model
from clipag_plugins.integrations.vqgan.weights import load_vqgan
from clipag_plugins.inversion import Inversion, edit, invert
from clipag_plugins.pictures import to_pil
from clipag_plugins.prior.drawing import sample_embeddings
from clipag_plugins.prior.files import load_prior
from clipag_plugins.prior.network import KINDS, Prior, condition_of
from clipag_plugins.sampler import sample, settings_for
from clipag_plugins.targets import Target, text_embeddings
from clipag_plugins.unclip import Decoding, unclip

from . import keep_table
from .common import evenly, first_of_each
from .groups import prompts_of
from .judge import Judge
from .vqgan import drawn as drawn_by_vqgan

MODEL, VANILLA = "clipag-mini", "clip-mini"
GROUPS = ("seen", "imagenet", "neither", "sentences")
CHOICES = 100  # captions that the judge chooses from
SIDE = 96  # pixels of the pictures
BATCH = 12
STEPS, VIEWS = 12, 2  # fewer than the defaults, to draw many pictures on a CPU
INVERSION_STEPS = 60  # noise is a far start
INVERTING = ("clip-mini", "clipag-mini", "clip-lite", "clipag-lite")
STARTS = {"noise": "noise", "gmm": "mixture"}
SEEDS = 8  # of each prompt, for the diversity
QUIET = RunOptions(progress=False)
STRENGTHS = (0.0, 0.2, 0.4, 0.6)
VQGAN_RUN = {"steps": 50, "views": 16, "seed": 0}
Ways = dict[str, Callable[[Sequence[str], Sequence[int]], Tensor]]


def ways_to_targets(model: ClipagModel, priors: Path) -> Ways:
    """Return what makes embeddings (texts, seeds, D) of texts and seeds, by name."""

    def words(texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return condition_of(model, texts).embeddings[:, None].expand(-1, len(seeds), -1)

    def memory(texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return text_embeddings(model, texts)[:, None].expand(-1, len(seeds), -1)

    def drawn_by(prior: Prior) -> Callable[[Sequence[str], Sequence[int]], Tensor]:
        return lambda texts, seeds: sample_embeddings(prior, model, texts, seeds)

    ways: Ways = {"text": words, "memory of captions": memory}
    for kind in KINDS:
        path = priors / kind / training.RESULT
        if path.is_file() or kind in read_config()["priors"]:
            known = path if path.is_file() else kind
            ways[f"{kind} prior"] = drawn_by(load_prior(known, model))
    return ways


def gap(work: Path, priors: Path) -> list[dict[str, Any]]:
    """Compare what each way makes of captions with embeddings of pictures of them.

    The pictures are those of the corpus' splits that no model was trained on: "test" has pictures
    of captions that the training has other pictures of, "unseen" has captions that it has none of.
    """
    model = load_model(MODEL)
    known = training.encode(
        Source("corpus", str(work)), model, priors / "diffusion" / "embeddings.safetensors"
    )
    lines = []
    for split in ("test", "unseen"):
        source = Source("corpus", str(work), split=split)
        held_out = training.encode(source, model, priors / f"{split}.safetensors")
        guesses = {
            name: way(held_out.captions, [0])[:, 0]
            for name, way in ways_to_targets(model, priors).items()
        }
        captions = training.Captions(known.captions, ("{}",), model).embeddings
        sums = torch.zeros_like(captions).index_add(0, known.numbers, known.embeddings)
        counts = torch.bincount(known.numbers, minlength=len(captions))
        z_t = condition_of(model, held_out.captions).embeddings
        nearest = (z_t @ captions.T).argmax(dim=1)
        mean = known.embeddings.mean(dim=0)
        guesses |= {
            "mean of all": mean.expand_as(z_t),
            "mean of the nearest caption": sums[nearest] / counts[nearest, None],
        }
        for name, guess in guesses.items():
            of_pictures, z = guess[held_out.numbers], held_out.embeddings
            centred = F.cosine_similarity(of_pictures - mean, z - mean)
            lines.append(
                {
                    "pictures": split,
                    "guess": name,
                    "squared distance": (of_pictures - z).square().sum(dim=1).mean().item(),
                    "similarity": F.cosine_similarity(of_pictures, z).mean().item(),
                    # Without the mean of all pictures, which a mere constant has.
                    "centred similarity": 0.0 if name == "mean of all" else centred.mean().item(),
                }
            )
    return lines


def drawn(model: ClipagModel, embeddings: Tensor, seed: int) -> Tensor:
    """Draw pictures (N, 3, S, S) of embeddings (N, D), in one try each."""
    settings = settings_for(model, steps=STEPS, views=VIEWS, tries=1)
    parts = [
        sample([[Target(each)] for each in chunk], model, settings, seed=seed, size=SIDE,
               options=QUIET).images
        for chunk in embeddings.split(BATCH)
    ]  # fmt: skip
    return torch.cat(parts)


def ranks(judge: Judge, images: Tensor, choices: Sequence[str], right: Tensor) -> Tensor:
    """Return how many of the choices the judge prefers to the right one (N,), for each image."""
    similarity = judge.embed_images(images) @ judge.embed_texts(choices).T
    return (similarity > similarity.gather(1, right[:, None])).sum(dim=1)


def shares(rank: Tensor) -> dict[str, float]:
    """Return how often the right choice is first, and how often among the first five."""
    return {
        "R-Prec": (rank == 0).float().mean().item(),
        "top 5": (rank < 5).float().mean().item(),
    }


def with_priors(judge: Judge, ways: Ways, count: int) -> list[dict[str, Any]]:
    """Draw prompts of each group towards what each way makes of them, and judge the pictures."""
    model = load_model(MODEL)
    lines = []
    for group in GROUPS:
        choices = prompts_of(group)
        numbers = evenly_from(len(choices), count)
        prompts = [choices[number] for number in numbers.tolist()]
        for name, way in ways.items():
            images = drawn(model, way(prompts, [0])[:, 0], 0)
            rank = ranks(judge, images, choices, numbers)
            line: dict[str, Any] = {"prompts": group, "target": name, **shares(rank)}
            print(json.dumps(line), flush=True)
            lines.append(line)
    return lines


def diversity(judge: Judge, ways: Ways, count: int) -> list[dict[str, Any]]:
    """Return how unlike each other the judge finds pictures of one prompt from several seeds."""
    model = load_model(MODEL)
    choices = prompts_of("seen")
    prompts = [choices[number] for number in evenly_from(len(choices), count).tolist()]
    lines: list[dict[str, Any]] = []
    for name, way in ways.items():
        embeddings = way(prompts, range(SEEDS))
        images = torch.cat([drawn(model, embeddings[:, seed], seed) for seed in range(SEEDS)])
        z = judge.embed_images(images).unflatten(0, (SEEDS, -1))
        first, second = torch.triu_indices(SEEDS, SEEDS, 1)
        cosines = (z[first] * z[second]).sum(dim=2)
        lines.append({"target": name, "1 - cosine": 1 - cosines.mean().item()})
    return lines


def decoding(judge: Judge, decoder: Path, count: int) -> list[dict[str, Any]]:
    """Draw seen prompts with a decoder, alone and refined, and with the VQGAN, and judge them."""
    model, choices = load_model(MODEL), prompts_of("seen")
    numbers = evenly_from(len(choices), count)
    prompts = [choices[number] for number in numbers.tolist()]
    vqgan, how = load_vqgan(), argparse.Namespace(**VQGAN_RUN, side=SIDE)
    drawn_ = {
        "VQGAN": torch.cat([drawn_by_vqgan(model, vqgan, how, [each]).images for each in prompts]),
        "pixels": drawn(model, text_embeddings(model, prompts), 0),
    }
    for prior, steps in product((None, "diffusion"), (0, REFINEMENT_STEPS)):
        options = RunOptions(progress=False, prior=prior)
        how_to_decode = Decoding(refinement=steps, size=SIDE)
        name = f"decoder{', diffusion prior' if prior else ''}{', refined' if steps else ''}"
        drawn_[name] = unclip(prompts, decoder, model, how_to_decode, options=options)[0]
    prototypes = judge.embed_texts(prompts)
    return [
        {
            "drawn by": name,
            **shares(ranks(judge, images, choices, numbers)),
            "similarity": (judge.embed_images(images) * prototypes).sum(dim=1).mean().item(),
        }
        for name, images in drawn_.items()
    ]


def evenly_from(length: int, count: int) -> Tensor:
    """Return at most `count` numbers below a length, at equal distances."""
    return torch.arange(0, length, max(1, length // count))[:count]


def held_out(work: Path, count: int) -> tuple[list[corpus.Picture], Tensor]:
    """Return held-out pictures of different captions that training has too, (N, 3, 96, 96)."""
    pixels, pictures = corpus.load(work)
    chosen = list(evenly(first_of_each(pictures, "test"), count))
    indices = torch.tensor([picture.index for picture in chosen])
    rgba = torch.from_numpy(pixels[indices.numpy()])
    return chosen, Pictures(rgba, rgba.shape[1]).plain(torch.arange(len(chosen)))


def inverted(model: ClipagModel, images: Tensor, how: Inversion) -> Tensor:
    """Invert images (N, 3, S, S), some at a time."""
    return torch.cat(
        [
            invert([to_pil(image) for image in chunk], model, how, options=QUIET).images
            for chunk in images.split(BATCH)
        ]
    )


def inversion(judge: Judge, work: Path, count: int) -> list[dict[str, Any]]:
    """Invert held-out pictures, and let the judge find the sources' captions."""
    pictures, images = held_out(work, CHOICES)
    choices = [picture.caption for picture in pictures]
    numbers = evenly_from(len(choices), count)
    lines: list[dict[str, Any]] = [
        {"pictures": "the sources", **shares(ranks(judge, images[numbers], choices, numbers))}
    ]
    for name, init in product(INVERTING, STARTS):
        model = load_model(name)
        how = Inversion(init=init, size=SIDE, steps=INVERSION_STEPS, views=VIEWS, tries=1)
        outcome = inverted(model, images[numbers], how)
        with torch.no_grad():
            z = F.cosine_similarity(
                embed_images(model, outcome), embed_images(model, images[numbers])
            )
        line: dict[str, Any] = {
            "pictures": f"{name}'s inversions",
            "start": STARTS[init],
            **shares(ranks(judge, outcome, choices, numbers)),
            "similarity to z_i": z.mean().item(),
        }
        print(json.dumps(line), flush=True)
        lines.append(line)
    return lines


def variations(judge: Judge, work: Path, count: int) -> list[dict[str, Any]]:
    """Compare variations with their sources, beside random pictures of the sources' groups."""
    model = load_model(MODEL)
    pictures, images = held_out(work, CHOICES)
    pixels, everything = corpus.load(work)
    generator = torch.Generator().manual_seed(0)
    chosen, others = [], []
    for number in evenly_from(len(pictures), count).tolist():
        same = [
            each.index
            for each in everything
            if each.group == pictures[number].group and each.caption != pictures[number].caption
        ]
        if same:  # a group of one caption has no other picture
            chosen.append(number)
            others.append(same[int(torch.randint(len(same), (1,), generator=generator))])
    numbers = torch.tensor(chosen)
    rgba = torch.from_numpy(pixels[others])
    random = Pictures(rgba, rgba.shape[1]).plain(torch.arange(len(others)))
    sources = judge.embed_images(images[numbers])
    lines = []
    for closeness in (0.0, 0.5, 1.0):
        how = Inversion(seed=1, size=SIDE, closeness=closeness, steps=STEPS, views=VIEWS, tries=1)
        z = judge.embed_images(inverted(model, images[numbers], how))
        lines.append(
            {
                "pictures": f"variations, closeness {closeness:g}",
                "similarity to the source": (z * sources).sum(dim=1).mean().item(),
            }
        )
    of_random = (judge.embed_images(random) * sources).sum(dim=1)
    label = "random pictures of the same group"
    return [*lines, {"pictures": label, "similarity to the source": of_random.mean().item()}]


def diffs(judge: Judge, work: Path, count: int) -> list[dict[str, Any]]:
    """Edit held-out pictures towards another caption, and say how far the judge follows."""
    pictures, images = held_out(work, CHOICES)
    numbers = evenly_from(len(pictures), count).tolist()
    captions = [picture.caption for picture in pictures]
    # The new text is that of a picture half the list away: of another kind.
    texts = [(captions[i], captions[(i + len(captions) // 2) % len(captions)]) for i in numbers]
    old, new = (judge.embed_texts([pair[k] for pair in texts]) for k in (0, 1))
    how = Inversion(size=SIDE, closeness=1.0, steps=STEPS, views=VIEWS)
    lines = []
    for name in (MODEL, VANILLA):
        model = load_model(name)
        drawn_ = torch.stack(
            [
                edit(to_pil(images[i]), pair, model, how, strengths=STRENGTHS, options=QUIET).images
                for i, pair in zip(numbers, texts, strict=True)
            ]
        )  # fmt: skip
        z = judge.embed_images(drawn_.flatten(0, 1)).view(len(numbers), len(STRENGTHS), -1)
        towards, away = ((z * each[:, None]).sum(dim=2) for each in (new, old))
        balance = towards - away
        rising = (balance[:, 1:] > balance[:, :-1]).all(dim=1).float().mean().item()
        for place, strength in enumerate(STRENGTHS):
            lines.append(
                {
                    "model": name,
                    "strength": strength,
                    "similarity to the new text": towards[:, place].mean().item(),
                    "to the old": away[:, place].mean().item(),
                    "nearer to the new": (balance[:, place] > 0).float().mean().item(),
                    "rises at every strength": rising,
                }
            )
    return lines


def main(options: argparse.Namespace) -> None:
    """Measure the parts that were asked for, and keep each as a table of its own."""
    if "gap" in options.parts:
        keep_table("unclip_gap", {}, gap(options.work, options.priors))
    parts = [part for part in options.parts if part != "gap"]
    if not parts:
        return
    judge = Judge.load()
    ways = ways_to_targets(load_model(MODEL), options.priors)
    if options.targets:
        ways = {name: ways[name] for name in options.targets}
    drawing = {"priors": with_priors, "diversity": diversity}
    changing = {"inversion": inversion, "variations": variations, "diffs": diffs}
    for part in parts:
        if part in drawing:
            lines = drawing[part](judge, ways, options.count)
        elif part == "decoder":
            lines = decoding(judge, options.decoder, options.count)
        else:
            lines = changing[part](judge, options.work, options.count)
        settings = {"count": options.count, "side": SIDE, "steps": STEPS, "views": VIEWS}
        if part == "diversity":
            settings["seeds"] = SEEDS
        keep_table(f"unclip_{part}", settings, lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "parts",
        nargs="+",
        choices=("gap", "priors", "diversity", "decoder", "inversion", "variations", "diffs"),
    )
    parser.add_argument("--count", type=int, default=25, help="prompts of each group, or pictures")
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="lines of the table to make")
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--priors", type=Path, default=Path("build/priors"))
    parser.add_argument("--decoder", type=Path, help="a decoder that clipag decoder trained")
    main(parser.parse_args())
