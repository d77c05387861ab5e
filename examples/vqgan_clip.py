"""VQGAN+CLIP's loop, written out. It uses CLIPAG in the place of OpenAI's CLIP."""

import sys

import torch
from torch import optim
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import functional as TF

import clipag_plugins as clip  # was: from CLIP import clip
from clipag_plugins.integrations.vqgan import Cutouts, VqganCanvas, load_vqgan, starting_latent

prompt = sys.argv[1] if len(sys.argv) > 1 else "a green frog"
iterations = int(sys.argv[2]) if len(sys.argv) > 2 else 100
side = int(sys.argv[3]) if len(sys.argv) > 3 else 224
torch.manual_seed(0)

perceptor = clip.load("clipag-mini", device="cpu")[0].eval().requires_grad_(False)
model = load_vqgan()  # or taming's yaml and ckpt
canvas = VqganCanvas(model, starting_latent(model, (side, side)))
make_cutouts = Cutouts(32, "latest", ["Af", "Pe", "Ji", "Er"])
normalize = transforms.Normalize(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
embed = F.normalize(perceptor.encode_text(clip.tokenize(prompt)).float(), dim=1)
opt = optim.Adam([canvas.latent], lr=0.1)

for i in range(iterations):
    opt.zero_grad()
    cutouts, _ = make_cutouts(canvas.render(), perceptor.visual.input_resolution)
    iii = F.normalize(perceptor.encode_image(normalize(cutouts[0])).float(), dim=1)
    loss = (iii - embed).norm(dim=1).div(2).arcsin().pow(2).mul(2).mean()
    loss.backward()
    opt.step()
    canvas.constrain()
    if i % 10 == 0:
        print(f"i: {i}, loss: {loss.item():.3f}")

TF.to_pil_image(canvas.render()[0].detach()).save("vqgan_clip.png")
