"""Where heat maps point, on held-out pictures whose place is known: vanilla and CLIPAG.

    python -m benchmarks.explain --work build/weights
    python -m benchmarks.explain --work build/weights --choose 100      # on training pictures
    python -m benchmarks.explain --work build/weights --show "cat face" --out examples   # a scene

Each picture of the corpus' `test` split is pasted at a random place onto a soft mixture of colours,
60 to 80 % as wide as the scene. Its alpha channel tells where the object is. The pointing game asks
whether the map's highest point is on the object (Zhang et al., 2016); the second measure is the
share of the map's energy inside the object. Both are measured clean and under the paper's attack
(eq. 4: L∞ 8/255, 20 steps of 1/255), which each model's own gradient makes. A map that is 0
everywhere counts as a miss, with no energy inside.

Size, place, colours and the defaults of `heat_maps` and `clipag explain` were chosen on training
pictures. The candidates were two targets (a text's similarity, or its contrast to other texts),
four methods and the embedded towers' three stages. The choice has the highest mean of both measures
over both models, clean and attacked (`--choose 100`, kept in results/train); CLIPAG's lead over
vanilla did not count.
The paper's GradCAM, at its own best stage, is measured too. The first measurement on held-out
pictures was GradCAM of the similarity; everything else was measured there once.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from clipag_plugins.arguments import RunOptions
from clipag_plugins.attack import Linf, pgd
from clipag_plugins.defaults import CAMS
from clipag_plugins.evaluation.report import mean
from clipag_plugins.explain import contrast_targets, heat_maps
from clipag_plugins.files import slug
from clipag_plugins.finetune.embedded import corpus
from clipag_plugins.guide import Guide
from clipag_plugins.hub import load_model
from clipag_plugins.pictures import save_png, to_pil
from clipag_plugins.stages import stages
from clipag_plugins.targets import text_target

from . import keep

SIDE, LEAST, MOST = 96, 0.6, 0.8
THREAT = Linf(8 / 255, 20, 1 / 255)
BATCH = 44
MODELS = ("clip-mini", "clipag-mini")
STATES = ("clean", "attacked")
MEASURES = ("pointing game", "energy inside")
SHOWN = (("contrast", "hirescam"), ("contrast", "gradcam"), ("similarity", "gradcam"))


def scene(rgba: Tensor, generator: torch.Generator, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Paste a picture (4, h, w) at a random place; return image (3, side, side) and mask."""
    share = LEAST + (MOST - LEAST) * torch.rand((), generator=generator)
    width = int(side * share)
    rgba = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])  # colours under alpha 0 must not bleed in
    small = F.interpolate(rgba[None], size=(width, width), mode="bilinear", antialias=True)[0]
    top, left = torch.randint(0, side - width + 1, (2,), generator=generator).tolist()
    pasted = F.pad(small, (left, side - width - left, top, side - width - top))
    mixture = torch.rand(1, 3, 3, 3, generator=generator)
    ground = F.interpolate(mixture, size=(side, side), mode="bicubic")[0]
    return (pasted[:3] + (1 - pasted[3:]) * ground).clamp(0, 1), pasted[3] > 0.5


def show(caption: str, options: argparse.Namespace) -> None:
    """Write the scene of a caption's first held-out picture, enlarged, as {caption}.png."""
    pixels, rows = corpus.load(options.work)
    row = next(row for row in rows if row.split == "test" and row.caption == caption)
    rgba = torch.from_numpy(np.array(pixels[row.index])).permute(2, 0, 1) / 255
    image, _ = scene(rgba, torch.Generator().manual_seed(options.seed), side=224)
    path = options.out / f"{slug(caption)}.png"
    save_png(to_pil(image), path, {"source": f"{row.source}/{row.name}"})
    print(path)


def scores_of(heat: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return the pointing game and the energy inside, (B,) each, of maps (B, H, W)."""
    heat, masks = heat.flatten(1), masks.flatten(1)
    on_object = masks.gather(1, heat.argmax(dim=1, keepdim=True))[:, 0]
    total = heat.sum(dim=1)
    return {
        "pointing game": (on_object & (total > 0)).float(),
        "energy inside": (heat * masks).sum(dim=1) / total.clamp_min(1e-12),
    }


def scenes(options: argparse.Namespace) -> tuple[Tensor, Tensor, list[str]]:
    """Return images (N, 3, 96, 96), masks (N, 96, 96) and captions of a split."""
    pixels, rows = corpus.load(options.work)
    generator = torch.Generator().manual_seed(options.seed)
    chosen = [row for row in rows if row.split == options.split]
    if options.split != "test":  # shuffled, since the corpus is sorted by source
        order = torch.randperm(len(chosen), generator=generator)
        chosen = [chosen[i] for i in order]
    pasted = []
    for row in chosen[: options.pictures]:
        rgba = torch.from_numpy(np.array(pixels[row.index])).permute(2, 0, 1) / 255
        image, mask = scene(rgba, generator)
        if mask.any():
            pasted.append((image, mask, row.caption))
    images, masks = (
        torch.stack(part) for part in zip(*((i, m) for i, m, _ in pasted), strict=True)
    )
    return images, masks, [caption for _, _, caption in pasted]


def measured(
    images: Tensor, masks: Tensor, captions: list[str], maps: Sequence[tuple[str, str, int | None]]
) -> dict[tuple[str, ...], Tensor]:
    """Return pointing game and energy inside of several maps, times 100, (N,) each.

    A map is (target, method, stage), where None stands for the method's default stage. The keys of
    the result are (model, target, method, stage, measure, state).
    """
    scores: dict[tuple[str, ...], list[Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    for name in MODELS:
        model = load_model(name)
        parts, _ = stages(model.visual)
        targets = {
            "similarity": [text_target(model, text) for text in captions],
            "contrast": contrast_targets(model, captions),
        }
        negated = [text_target(model, f"not {text}", weight=-1.0) for text in captions]
        for part in tqdm(torch.arange(len(images)).split(BATCH), desc=name, unit="batch"):
            both = [[targets["similarity"][i], negated[i]] for i in part]
            guide = Guide(model, both, options=RunOptions("float32"))
            attacked = pgd(
                images[part],
                lambda x, guide=guide: guide.loss(x).sum(),  # type: ignore[misc]
                THREAT,
                generator,
            )
            for state, pictures in (("clean", images[part]), ("attacked", attacked)):
                for target, method, stage in maps:
                    chosen = [targets[target][i] for i in part]
                    layer = None if stage is None else parts[stage]
                    heat = heat_maps(model, pictures, chosen, method, layer)
                    for measure, value in scores_of(heat, masks[part]).items():
                        key = (name, target, method, str(stage), measure, state)
                        scores.setdefault(key, []).append(100 * value)
    return {key: torch.cat(parts) for key, parts in scores.items()}


def settings_of(options: argparse.Namespace, masks: Tensor) -> dict[str, object]:
    """Return what was measured on; chance is the share of the object's area."""
    return {
        "pictures": len(masks),
        "seed": options.seed,
        "split": options.split,
        "chance": round(masks.float().mean().item(), 4),
    }


def choose(options: argparse.Namespace) -> None:
    """Measure every target, method and stage, and rank them by the mean of all measures."""
    images, masks, captions = scenes(options)
    maps = list(itertools.product(("similarity", "contrast"), CAMS, range(3)))
    values = measured(images, masks, captions, maps)
    ranked = {}
    for target, method, stage in maps:
        key = (target, method, str(stage))
        means = {k: v.mean().item() for k, v in values.items() if k[1:4] == key}
        ranked[f"{target}, {method}, stage {stage + 1}"] = {
            "mean": round(sum(means.values()) / len(means), 2),
            **{f"{k[0]}, {k[4]}, {k[5]}": round(v, 1) for k, v in means.items()},
        }
    best = dict(sorted(ranked.items(), key=lambda item: -item[1]["mean"]))
    keep("train/explain", {**settings_of(options, masks), **best})


def main(options: argparse.Namespace) -> None:
    """Measure both models and write the figures."""
    images, masks, captions = scenes(options)
    values = measured(images, masks, captions, [(*shown, None) for shown in SHOWN])
    report = settings_of(options, masks)
    for (target, method), measure in itertools.product(SHOWN, MEASURES):
        figures: dict[str, list[float | None]] = {}
        values_of = {
            (name, state): values[name, target, method, "None", measure, state]
            for name, state in itertools.product(MODELS, STATES)
        }
        for name in MODELS:
            clean, attacked = (values_of[name, state] for state in STATES)
            figures |= {
                f"{name}, clean": interval(clean),
                f"{name}, attacked": interval(attacked),
                f"{name}, drop": interval(clean - attacked),
            }
        for state in STATES:
            vanilla, clipag = (values_of[name, state] for name in MODELS)
            figures[f"clipag-mini ahead by, {state}"] = interval(clipag - vanilla)
        report[f"{method} of {target}: {measure}"] = figures
    keep("explain", report)


def interval(values: Tensor) -> list[float | None]:
    """Return the mean of values and its 95 % interval."""
    row = mean("", "", values)
    return [None if x is None else round(x, 2) for x in (row.value, row.low, row.high)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--choose", type=int, metavar="N", help="only this, on training pictures")
    parser.add_argument("--show", nargs="+", default=[], metavar="CAPTION", help="only this")
    parser.add_argument("--out", type=Path, default=Path("examples"))
    arguments = parser.parse_args()
    for caption in arguments.show:
        show(caption, arguments)
    arguments.split = "train" if arguments.choose else "test"
    arguments.pictures = arguments.choose
    if arguments.choose:
        choose(arguments)
    elif not arguments.show:
        main(arguments)
