"""CLIPDraw's notebook loop with CLIPAG as its CLIP, and a pydiffvg that needs no compiler."""

import random
import sys

import torch
from torchvision import transforms

import clipag_plugins as clip
from clipag_plugins.integrations import shims

shims.install()
import pydiffvg  # noqa: E402  (diffvg's own, if it is installed)

prompt = sys.argv[1] if len(sys.argv) > 1 else "a red apple"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 250
strokes, side, segments, views = 256, 224, 2, 4
torch.manual_seed(0)
random.seed(0)

pydiffvg.set_use_gpu(torch.cuda.is_available())
device = pydiffvg.get_device()
model, preprocess = clip.load("clipag-mini", device)
text = model.encode_text(clip.tokenize(prompt).to(device)).detach()
augment = transforms.Compose(
    [
        transforms.RandomPerspective(fill=1, p=1, distortion_scale=0.5),
        transforms.RandomResizedCrop(side, scale=(0.7, 0.9)),
        transforms.Normalize((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    ]
)
shapes, groups = [], []
for number in range(strokes):
    walk = 0.1 * (torch.rand(3 * segments + 1, 2) - 0.5)
    walk[0] = torch.rand(2)
    controls = torch.full((random.randint(1, segments),), 2)
    stroke = (walk.cumsum(0) * side)[: 3 * len(controls) + 1].to(device)
    shapes.append(pydiffvg.Path(controls, stroke, False, torch.tensor(1.0, device=device)))
    colour = torch.rand(4, device=device)
    groups.append(pydiffvg.ShapeGroup(torch.tensor([number]), None, stroke_color=colour))
points = [path.points.requires_grad_() for path in shapes]
widths = [path.stroke_width.requires_grad_() for path in shapes]
colours = [group.stroke_color.requires_grad_() for group in groups]
rates = ((points, 1.0), (widths, 0.1), (colours, 0.01))
optimizer = torch.optim.Adam([{"params": params, "lr": rate} for params, rate in rates])

for step in range(steps):
    scene = pydiffvg.RenderFunction.serialize_scene(side, side, shapes, groups)
    image = pydiffvg.RenderFunction.apply(side, side, 2, 2, step, None, *scene)
    image = image[..., 3:] * image[..., :3] + 1 - image[..., 3:]
    batch = torch.cat([augment(image.permute(2, 0, 1)[None]) for _ in range(views)])
    loss = -torch.cosine_similarity(text, model.encode_image(batch)).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for width, colour in zip(widths, colours, strict=True):
        width.data.clamp_(1, 50)
        colour.data.clamp_(0, 1)
pydiffvg.save_svg("clipdraw.svg", side, side, shapes, groups)
