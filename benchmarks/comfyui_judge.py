"""What CLIPAG Guide Diffusion adds to a diffusion model that knows no words, by the judge.

    python -m benchmarks.comfyui_train COMFYUI_DIR --out build/tiny.safetensors     # first
    python -m benchmarks.comfyui_judge choose COMFYUI_DIR --model build/tiny.safetensors
    python -m benchmarks.comfyui_judge table COMFYUI_DIR --model build/tiny.safetensors
    python -m benchmarks.comfyui_judge figure COMFYUI_DIR --model build/tiny.safetensors

Run it with the Python that runs ComfyUI. The pictures are drawn by ComfyUI's sampler with our node,
inside this process: with no guide, with vanilla ones and with robust ones. All draw from the same
noise, and the guides have the node's default views. `choose` draws captions that no figure uses
with several strengths of the node; `table` draws others with the best strength, and keeps the
judge's verdict; `figure` shows the first of them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipag_plugins.integrations.comfyui.images import tensors_of
from clipag_plugins.pictures import from_pil, read_picture, save_png, to_pil

from . import FIGURES, RESULTS, keep
from .comfyui_inside import node, start_comfyui
from .common import digest_of_package, judged, write_figure
from .groups import prompts_of
from .judge import Judge

GUIDES = ("clip-mini", "clipag-mini", "clip-lite", "clipag-lite")
STRENGTHS = (0.2, 0.4, 0.8)
STEPS, SAMPLER, SCHEDULER = 12, "euler", "normal"
SIDE = 96  # pixels of the corpus
CHOOSING = 6  # captions for the choice, evenly from the list
CHOICE = "train/comfyui_judge"


class Studio:
    """Draws prompts with the tiny model in ComfyUI, guided or not.

    Args:
        nodes: ComfyUI's module.
        file: the tiny model, by `benchmarks.comfyui_train`.
        work: where the pictures go.
    """

    def __init__(self, nodes: Any, file: Path, work: Path):
        from .comfyui_tiny import TinyDiffusion

        self.nodes = nodes
        self.work = work / digest_of_package()
        with torch.inference_mode():
            self.diffusion, self.vae, self.blank, _ = TinyDiffusion().run(str(file))

    def pictures(self, prompts: list[str], guide: str = "", strength: float = 0.0) -> Tensor:
        """Return a picture of each prompt, (N, 3, 96, 96) in [0, 1]; those that exist are read.

        Args:
            prompts: what to draw. The number of a prompt is the seed of its noise.
            guide: the model that guides; without one, the prompts count for nothing.
            strength: the node's.
        """
        folder = self.folder(prompts, guide, strength)
        paths = [folder / f"{seed:05}.png" for seed in range(len(prompts))]
        missing = [seed for seed, path in enumerate(paths) if not path.exists()]
        model = node("ClipagLoadModel", model_name=guide) if guide and missing else None
        for seed in missing:
            guided = self.diffusion
            if model is not None:
                target = node("ClipagTextTarget", text=prompts[seed])
                guided = node(
                    "ClipagGuideDiffusion", diffusion=guided, vae=self.vae, model=model,
                    target=target, strength=strength, view_seed=seed,
                )  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
            save_png(to_pil(self._sampled(guided, seed)), paths[seed], {"prompt": prompts[seed]})
        files = [read_picture(path) for path in paths]
        return torch.stack([from_pil(file, file.size) for file in files])

    def folder(self, prompts: list[str], guide: str = "", strength: float = 0.0) -> Path:
        """Return where the pictures of these prompts are."""
        return self.work / f"{prompts[0]}-{guide or 'unguided'}-{strength:g}"

    def _sampled(self, diffusion: Any, seed: int) -> Tensor:
        """Return the picture (3, 96, 96) that ComfyUI draws with a MODEL."""
        with torch.inference_mode():
            latent = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
            (latent,) = self.nodes.common_ksampler(
                diffusion, seed, STEPS, 1.0, SAMPLER, SCHEDULER, self.blank, self.blank, latent
            )
            return tensors_of(self.vae.decode(latent["samples"]))[0]


def choose(studio: Studio, judge: Judge) -> None:
    """Keep the judge's verdict on several strengths of each guide."""
    every = prompts_of("choosing")
    prompts = every[:: len(every) // CHOOSING][:CHOOSING]
    candidates = [*prompts, *(prompt for prompt in every if prompt not in prompts)]
    rows = []
    for guide in GUIDES:
        for strength in STRENGTHS:
            images = studio.pictures(prompts, guide, strength)
            row = {"guide": guide, "strength": strength, **judged(judge, images, candidates)}
            print(json.dumps(row), flush=True)
            rows.append(row)
    keep(CHOICE, {"prompts": len(prompts), "steps": STEPS, "rows": rows})


def chosen_strengths() -> dict[str, float]:
    """Return each guide's strength: that whose pictures are most similar to their prompts."""
    rows = json.loads((RESULTS / f"{CHOICE}.json").read_text(encoding="utf-8"))["rows"]
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["similarity"]):
        best[row["guide"]] = row
    return {guide: best[guide]["strength"] for guide in GUIDES}


def table(studio: Studio, judge: Judge, count: int) -> None:
    """Keep the judge's verdict on each guide's pictures of the first prompts."""
    every = prompts_of("seen")
    prompts = every[:count]
    rows = []
    for guide, strength in {"": 0.0, **chosen_strengths()}.items():
        images = studio.pictures(prompts, guide, strength)
        row = {"guide": guide, "strength": strength, **judged(judge, images, every)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    keep(
        "comfyui_judge", {"prompts": count, "candidates": len(every), "steps": STEPS, "rows": rows}
    )


def figure(studio: Studio, count: int) -> None:
    """Write the first prompts' pictures, unguided and by the vanilla and the robust guides."""
    prompts = prompts_of("seen")[:count]
    folders = [studio.folder(prompts, *each) for each in {"": 0.0, **chosen_strengths()}.items()]
    write_figure(FIGURES / "guided_diffusion.webp", prompts, folders)


def main() -> None:
    """Draw, and keep what the judge says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comfyui_judge", description=__doc__)
    parser.add_argument("what", choices=["choose", "table", "figure"])
    parser.add_argument("comfyui", type=Path, help="the folder of a ComfyUI, with main.py")
    parser.add_argument("--model", type=Path, default=Path("build/tiny.safetensors"))
    parser.add_argument("--work", type=Path, default=Path("build/comfyui"))
    parser.add_argument("--prompts", type=int, default=50)
    options = parser.parse_args()
    studio = Studio(start_comfyui(options.comfyui), options.model, options.work)
    if options.what == "choose":
        choose(studio, Judge.load())
    elif options.what == "table":
        table(studio, Judge.load(), options.prompts)
    else:
        figure(studio, options.prompts)


if __name__ == "__main__":
    main()
