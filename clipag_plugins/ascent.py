"""The one loop: change what renders an image until the guide likes the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from tqdm import tqdm

from .canvas import Canvas, Optimizer
from .guide import Guide

Callback = Callable[[int, Tensor, Tensor], bool | None]
Penalty = Callable[[Tensor], Tensor]


@dataclass
class Ascent:
    """What an ascent reached.

    Attributes:
        images: the best iterate of each image, (B, 3, H, W) in [0, 1].
        losses: the loss of each best iterate, (B,): the guide's, and the penalties.
        steps: steps that were taken.
        interrupted: Ctrl-C ended it early.
        state: the canvas' `state()` at the best iterate of each image, for
            `canvas.load_state_dict`.
        rows: which of the canvas' images were kept, where `best_of` left some out.
    """

    images: Tensor
    losses: Tensor
    steps: int
    interrupted: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)
    rows: list[int] | None = None

    def best_of(self, losses: Tensor) -> "Ascent":
        """Return the ascent with one image a row of `losses` (B, tries), that of the least loss."""
        best = losses.argmin(dim=1)
        rows = torch.arange(len(losses), device=best.device) * losses.shape[1] + best
        state = {name: values[rows] for name, values in self.state.items()}
        images, reached = self.images[rows], self.losses[rows]
        return replace(self, images=images, losses=reached, state=state, rows=rows.tolist())


def ascend(
    canvas: Canvas,
    guide: Guide,
    steps: int,
    optimizer: Optimizer | None = None,
    callback: Callback | None = None,
    progress: bool = True,
    penalties: Sequence[Penalty] = (),
) -> Ascent:
    """Raise the guide's similarity of what the canvas renders, keeping the best iterate.

    Args:
        canvas: what is changed.
        guide: what judges it.
        steps: number of updates.
        optimizer: by default the canvas' own.
        callback: called as `callback(step, images, losses)` before each update and once
            after the last, with images (B, 3, H, W) and losses (B,); a true return value
            ends the ascent.
        progress: show a progress bar; its number is the guide's alone.
        penalties: what else counts, each from images (B, 3, H, W) to (B,), its weight
            included: how far a picture is from its content, how rough it is, or another
            guide's `loss`. They are added to the guide's loss.

    Returns:
        The best iterate of each image. Ctrl-C ends the loop and keeps the best so far.

    Raises:
        ValueError: `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, but an ascent takes at least 1.")
    optimizer = optimizer or canvas.optimizer()
    images = canvas.render()
    best = images.detach().clamp(0, 1)
    result = Ascent(best, torch.full((len(best),), float("inf"), device=best.device), 0)
    result.state = {name: values.detach().clone() for name, values in canvas.state().items()}
    bar = tqdm(total=steps, unit="step", disable=not progress)
    try:
        # One look more than there are steps: the last update is judged too.
        for step in range(steps + 1):
            guided = guide.loss(images)
            losses = guided + sum(penalty(images) for penalty in penalties)
            shown, reached = images.detach().clamp(0, 1), losses.detach()
            better = reached < result.losses
            result.images[better] = shown[better]
            result.losses[better] = reached[better]
            for name, values in canvas.state().items():
                result.state[name][better] = values.detach()[better]
            mean = guided.detach().mean().item()
            if guide.is_distance:
                bar.set_postfix(distance=f"{mean:.3f}")
            else:
                bar.set_postfix(similarity=f"{-mean:.3f}")
            if (callback is not None and callback(step, shown, reached)) or step == steps:
                break
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            canvas.constrain()
            result.steps = step + 1
            bar.update()
            images = canvas.render()
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        bar.close()
    return result
