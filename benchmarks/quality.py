"""Guidance quality, judged by a model that did not guide: the paper's Table 1 in small.

    python -m benchmarks.quality                     # the whole table: about half an hour
    python -m benchmarks.quality --prompts 20        # the first 20 prompts, printed and not kept

Draws the 100 seen and the 100 unseen prompts with the vanilla and the CLIPAG tower, without
and with augmentation, and asks the independent evaluator which of the 100 prompts each
picture shows (R-Prec; chance is 1 %). The pictures that the ascents start from are judged
too, so that nobody mistakes the start's share for the guide's. Goes on where it stopped.
"""

import argparse
import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from clipag_plugins import sampler
from clipag_plugins.ascent import Ascent
from clipag_plugins.evaluation import similarities_and_ranks
from clipag_plugins.files import write_beside
from clipag_plugins.finetune.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.guide import text_target
from clipag_plugins.hub import embedded_config
from clipag_plugins.model import load_clipag
from clipag_plugins.sampler import sample, save_png, starting_images, to_pil

from . import evaluator

RESULTS = Path(__file__).parent / "results"
BATCH = 10


def pictures_of(
    model_name: str,
    prompts: list[str],
    folder: Path,
    views: int | None,
    steps: int | None,
    seed: int,
) -> torch.Tensor:
    """Return (N, 3, 224, 224) pictures of the prompts, drawn now or found in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = load_clipag(model_name)
    for i in tqdm(range(0, len(prompts), BATCH), desc=str(folder), unit="batch"):
        batch = prompts[i : i + BATCH]
        paths = [folder / f"{prompt}.png" for prompt in batch]
        if all(path.exists() for path in paths):
            continue
        if steps == 0:
            targets = [text_target(model, prompt) for prompt in batch]
            images = starting_images("gmm", targets, model, 224, seed)
        else:
            ascent: Ascent = sample(
                batch, model, views=views, steps=steps, seed=seed, progress=False
            )
            if ascent.interrupted:
                raise KeyboardInterrupt
            images = ascent.images
        for path, image in zip(paths, images, strict=True):
            save_png(to_pil(image), path, {})
    return read_pictures(folder, prompts)


def read_pictures(folder: Path, prompts: list[str]) -> torch.Tensor:
    """Return the pictures {prompt}.png in `folder` as (N, 3, H, W) in [0, 1]."""
    opened = [Image.open(folder / f"{prompt}.png") for prompt in prompts]
    return torch.stack([TF.to_dtype(TF.to_image(p), torch.float32, scale=True) for p in opened])


def judged(judge: evaluator.Evaluator, images: torch.Tensor, every: list[str]) -> dict[str, float]:
    """Judge pictures of the first of `every` prompts; all of them are the candidates."""
    similarity, rank = similarities_and_ranks(
        judge.embed_images(images), judge.embed_texts(every), torch.arange(len(images))
    )
    return {
        "R-Prec": (rank == 0).float().mean().item(),
        "top 5": (rank < 5).float().mean().item(),
        "similarity": similarity.mean().item(),
    }


def digest_of(model_name: str, *sources: ModuleType) -> str:
    """Name the very weights and code that make a picture: no old one is judged as new."""
    made_by = embedded_config()["models"][model_name]["image"]["sha256"].encode()
    for source in sources:
        made_by += Path(str(source.__file__)).read_bytes()
    return hashlib.sha256(made_by).hexdigest()[:12]


def write_results(name: str, settings: dict[str, int], rows: list[dict[str, Any]]) -> None:
    """Keep rows of text, then judgements, as {name}.json and as the table {name}.md."""
    RESULTS.mkdir(exist_ok=True)
    with write_beside(RESULTS / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")
    texts = [key for key, value in rows[0].items() if isinstance(value, str)]
    lines = [
        f"| {' | '.join(rows[0])} |",
        "|---" * len(rows[0]) + "|",
    ]
    for r in rows:
        words = " | ".join(r[text] for text in texts)
        shares = f"{r['R-Prec']:.0%} | {r['top 5']:.0%} | {r['similarity']:.3f}"
        lines.append(f"| {words} | {shares} |")
    with write_beside(RESULTS / f"{name}.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def main(options: argparse.Namespace) -> None:
    """Draw, judge, and write the table."""
    judge = evaluator.load()
    rows = []
    for kind in ("seen", "unseen"):
        every = read_concepts(SPLIT_FOLDER / f"{kind}.txt")
        prompts = every[: options.prompts]
        for name in ("clip-mini", "clipag-mini"):
            for setting, views, steps in (
                ("start only", None, 0),
                ("no augmentation", 1, None),
                ("augmentation", None, None),
            ):
                digest = digest_of(name, sampler)
                folder = options.work / f"{name}-{digest}-{options.seed}" / kind / setting
                images = pictures_of(name, prompts, folder, views, steps, options.seed)
                facts = {"prompts": kind, "model": name, "setting": setting}
                rows.append({**facts, **judged(judge, images, every)})
                print(json.dumps(rows[-1]), flush=True)
    if options.prompts == 100:
        write_results("quality", {"seed": options.seed}, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    main(parser.parse_args())
