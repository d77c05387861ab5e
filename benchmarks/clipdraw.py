"""CLIPDraw judged by a model that did not guide: the paper's Table 1 in small.

    python -m benchmarks.clipdraw --strokes 64 --steps 100    # the whole table and the figure
    python -m benchmarks.clipdraw --prompts 2                 # the first 2 prompts, not kept

Draws the 100 seen prompts with the vanilla and the CLIPAG tower, without and with the notebook's
augmentation and all else the same, and asks the independent evaluator which of the 100 prompts
each drawing shows (R-Prec; chance is 1 %). Goes on where it stopped. The figure shows the first
prompts of the list; nobody chose them for their drawings.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from clipag_plugins.finetune.corpus import SPLIT_FOLDER, read_concepts
from clipag_plugins.integrations import clipdraw, renderer
from clipag_plugins.model import load_clipag
from clipag_plugins.sampler import save_png, to_pil

from . import evaluator
from .contact_sheet import write_sheet
from .quality import digest_of, judged, read_pictures, write_results

FIGURE = Path("examples/clipdraw.png")
SHOWN, COLUMNS = 8, 2
# In the order of Table 1.
SETTINGS = [(name, augment) for augment in (False, True) for name in ("clip-mini", "clipag-mini")]


def draw_prompts(
    name: str, augment: bool, prompts: list[str], folder: Path, options: argparse.Namespace
) -> None:
    """Draw the prompts that have no drawing {prompt}.png in `folder` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [prompt for prompt in prompts if not (folder / f"{prompt}.png").exists()]
    model = load_clipag(name, torch.device(options.device))
    for i in tqdm(range(0, len(missing), options.batch), desc=str(folder), unit="batch"):
        batch = missing[i : i + options.batch]
        _, ascent = clipdraw.draw(
            batch,
            model,
            strokes=options.strokes,
            steps=options.steps,
            seed=options.seed,
            augment=augment,
            progress=False,
        )
        if ascent.interrupted:
            raise KeyboardInterrupt
        for prompt, image in zip(batch, ascent.images, strict=True):
            save_png(to_pil(image), folder / f"{prompt}.png", {})


def main(options: argparse.Namespace) -> None:
    """Draw, judge, and write table and figure."""
    judge = evaluator.load()
    every = read_concepts(SPLIT_FOLDER / "seen.txt")
    prompts = every[: options.prompts]
    rows, folders = [], []
    for name, augment in SETTINGS:
        made_by = digest_of(name, clipdraw, renderer)
        run = f"{name}-{made_by}-{options.strokes}-{options.steps}-{options.seed}"
        folder = options.work / run / ("augmentation" if augment else "no augmentation")
        draw_prompts(name, augment, prompts, folder, options)
        folders.append(folder)
        facts = {"model": name, "augmentation": "yes" if augment else "no"}
        rows.append({**facts, **judged(judge, read_pictures(folder, prompts), every)})
        print(json.dumps(rows[-1]), flush=True)
    is_whole = options.prompts == len(every)
    figure = FIGURE if is_whole else options.work / FIGURE.name
    shown = prompts[:SHOWN]
    drawings = [[Image.open(folder / f"{prompt}.png") for prompt in shown] for folder in folders]
    write_sheet(figure, shown, drawings, COLUMNS)
    print(figure)
    if is_whole:
        settings = {key: vars(options)[key] for key in ("seed", "strokes", "steps")}
        write_results("clipdraw", settings, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--strokes", type=int, default=clipdraw.STROKES)
    parser.add_argument("--steps", type=int, default=clipdraw.STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=5, help="drawings at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("build/clipdraw"))
    main(parser.parse_args())
