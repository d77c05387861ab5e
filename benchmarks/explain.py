"""Where GradCAM points, on held-out pictures whose place is known: vanilla and CLIPAG.

    python -m benchmarks.explain --work build/weights
    python -m benchmarks.explain --work build/weights --show "cat face" --out examples   # a scene

Each picture of the corpus' `test` split is pasted at a random place, three fifths to four fifths
as wide as the scene, onto a soft mixture of colours; its alpha channel is the truth. Measured are
the pointing game (is the map's highest point on the object? Zhang et al., 2016) and the share of
the map's energy that lies on it, clean and under the paper's attack (eq. 4: L∞ 8/255, 20 steps of
1/255), each model under its own. Size, place and colours were settled on training pictures, and
so was the layer that `heat_maps` asks of the embedded models, 6 × 6. The deepest, 3 × 3, which the
paper would ask, is measured beside it. A map that is 0 everywhere misses, with no energy inside.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from clipag_plugins.attack import Linf, pgd
from clipag_plugins.evaluation import mean
from clipag_plugins.explain import heat_maps
from clipag_plugins.files import slug, write_beside
from clipag_plugins.finetune import corpus
from clipag_plugins.guide import Guide, text_target
from clipag_plugins.model import load_clipag
from clipag_plugins.sampler import save_png, to_pil

RESULTS = Path(__file__).parent / "results"
SIDE, LEAST, MOST = 96, 0.6, 0.8
THREAT = Linf(8 / 255, 20, 1 / 255)
BATCH = 44


def scene(rgba: Tensor, generator: torch.Generator, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Paste a picture (4, h, w) somewhere: image (3, side, side) and mask (side, side)."""
    share = LEAST + (MOST - LEAST) * torch.rand((), generator=generator)
    width = int(side * share)
    rgba = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])  # or colours hidden under alpha 0 bleed in
    small = F.interpolate(rgba[None], size=(width, width), mode="bilinear", antialias=True)[0]
    top, left = torch.randint(0, side - width + 1, (2,), generator=generator).tolist()
    pasted = F.pad(small, (left, side - width - left, top, side - width - top))
    mixture = torch.rand(1, 3, 3, 3, generator=generator)
    ground = F.interpolate(mixture, size=(side, side), mode="bicubic")[0]
    return (pasted[:3] + (1 - pasted[3:]) * ground).clamp(0, 1), pasted[3] > 0.5


def show(caption: str, options: argparse.Namespace) -> None:
    """Write the scene of the first held-out picture of a caption, larger, as {caption}.png."""
    pixels, rows = corpus.load(options.work)
    row = next(row for row in rows if row.split == "test" and row.caption == caption)
    rgba = torch.from_numpy(np.array(pixels[row.index])).permute(2, 0, 1) / 255
    image, _ = scene(rgba, torch.Generator().manual_seed(options.seed), side=224)
    path = options.out / f"{slug(caption)}.png"
    save_png(to_pil(image), path, {"source": f"{row.source}/{row.name}"})
    print(path)


def pointed(heat: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return the pointing game and the energy inside, (B,) each, of maps (B, H, W)."""
    heat, masks = heat.flatten(1), masks.flatten(1)
    on_object = masks.gather(1, heat.argmax(dim=1, keepdim=True))[:, 0]
    total = heat.sum(dim=1)
    return {
        "pointing game": (on_object & (total > 0)).float(),
        "energy inside": (heat * masks).sum(dim=1) / total.clamp_min(1e-12),
    }


def main(options: argparse.Namespace) -> None:
    """Measure both models and write the figures."""
    pixels, rows = corpus.load(options.work)
    generator = torch.Generator().manual_seed(options.seed)
    chosen = [row for row in rows if row.split == options.split][: options.pictures]
    pasted = []
    for row in chosen:
        rgba = torch.from_numpy(np.array(pixels[row.index])).permute(2, 0, 1) / 255
        image, mask = scene(rgba, generator)
        if mask.any():
            pasted.append((image, mask, row.caption))
    images, masks = (
        torch.stack(part) for part in zip(*((i, m) for i, m, _ in pasted), strict=True)
    )
    captions = [caption for _, _, caption in pasted]
    # A point thrown anywhere is on the object this often, and even heat has this share inside.
    report: dict[str, object] = {
        "pictures": len(images),
        "seed": options.seed,
        "split": options.split,
        "chance": round(masks.float().mean().item(), 4),
    }
    values: dict[tuple[str, str, str, str], Tensor] = {}
    for name in ("clip-mini", "clipag-mini"):
        model = load_clipag(name)
        layers = {"6 × 6": None, "3 × 3": model.visual.tower.layers[-1]}
        found: dict[tuple[str, str, str], list[Tensor]] = {}
        for part in tqdm(torch.arange(len(images)).split(BATCH), desc=name, unit="batch"):
            texts = [captions[i] for i in part]
            targets = [text_target(model, text) for text in texts]
            negated = [text_target(model, f"not {text}", weight=-1.0) for text in texts]
            guide = Guide(model, list(zip(targets, negated, strict=True)), precision="float32")
            attacked = pgd(
                images[part],
                lambda x, guide=guide: guide.loss(x).sum(),  # type: ignore[misc]
                THREAT,
                generator,
            )
            for state, seen in (("clean", images[part]), ("attacked", attacked)):
                for grid, layer in layers.items():
                    heat = heat_maps(model, seen, targets, layer=layer)
                    for metric, value in pointed(heat, masks[part]).items():
                        found.setdefault((grid, metric, state), []).append(value)
        for key, parts in found.items():
            values[(name, *key)] = 100 * torch.cat(parts)
    for grid, metric in itertools.product(("6 × 6", "3 × 3"), ("pointing game", "energy inside")):
        figures = {}
        for name in ("clip-mini", "clipag-mini"):
            clean, attacked = (values[name, grid, metric, state] for state in ("clean", "attacked"))
            figures |= {
                f"{name}, clean": interval(clean),
                f"{name}, attacked": interval(attacked),
                f"{name}, drop": interval(clean - attacked),
            }
        for state in ("clean", "attacked"):
            vanilla, clipag = (
                values[name, grid, metric, state] for name in ("clip-mini", "clipag-mini")
            )
            figures[f"clipag-mini ahead by, {state}"] = interval(clipag - vanilla)
        report[f"{grid}: {metric}"] = figures
    text = json.dumps(report, indent=1)
    print(text)
    if options.pictures is None and options.split == "test":
        RESULTS.mkdir(exist_ok=True)
        with write_beside(RESULTS / "explain.json") as temporary:
            temporary.write_text(text + "\n")


def interval(values: Tensor) -> list[float | None]:
    """Return the mean of values and its 95 % interval."""
    row = mean("", "", values)
    return [None if x is None else round(x, 2) for x in (row.value, row.low, row.high)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test")
    parser.add_argument("--pictures", type=int, help="only the first, printed and not kept")
    parser.add_argument("--show", nargs="+", default=[], metavar="CAPTION", help="only this")
    parser.add_argument("--out", type=Path, default=Path("examples"))
    arguments = parser.parse_args()
    for wanted in arguments.show:
        show(wanted, arguments)
    if not arguments.show:
        main(arguments)
