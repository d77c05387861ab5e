"""Guide a pipeline of diffusers by CLIPAG, and draw without guidance beside it.

    python examples/diffusers_guidance.py google/ddpm-cat-256 "a ginger cat"
    python examples/diffusers_guidance.py FOLDER "a red apple" --model ViT-B/32 --scale 0.1

Needs pip install 'clipag-plugins[diffusers]'.
"""

import argparse
import inspect

import torch
from diffusers import DiffusionPipeline

import clipag_plugins as clip
from clipag_plugins.defaults import GUIDANCE_STRENGTH
from clipag_plugins.integrations.diffusion import ClipagGuidance

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("pipeline", help="a repository of the Hub, or a folder")
parser.add_argument("prompt", help="what to draw")
parser.add_argument("--model", default="clipag-mini", help="the CLIP that guides")
parser.add_argument("--scale", type=float, default=GUIDANCE_STRENGTH, help="of a move")
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
pipeline = DiffusionPipeline.from_pretrained(options.pipeline).to(device)
guidance = ClipagGuidance(
    clip.load_model(options.model, device), options.prompt, scale=options.scale
)
takes_prompt = "prompt" in inspect.signature(pipeline.__call__).parameters


def draw(path: str) -> None:
    picture = pipeline(
        **({"prompt": options.prompt} if takes_prompt else {}),
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(options.seed),
    ).images[0]
    picture.save(path)
    print(path)


draw("plain.png")
with guidance.applied_to(pipeline):
    draw("guided.png")
print("loss of the clean pictures, first and last:", guidance.losses[0], guidance.losses[-1])
