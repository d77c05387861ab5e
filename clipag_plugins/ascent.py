"""The one loop: change the parameters of a canvas until the guide likes the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from .arguments import check_steps
from .canvas import Canvas, Optimizer
from .notebook import new_display
from .pictures import to_pil
from .sheet import strip

Callback = Callable[[int, Tensor, Tensor], bool | None]
Penalty = Callable[[Tensor], Tensor]


class ImageLoss(Protocol):
    """What judges images: a `Guide`, several `Guides`, or your own."""

    def loss(self, images: Tensor) -> Tensor:
        """Return a loss (B,) of images (B, 3, H, W), differentiable in them."""

    def readout(self, losses: Tensor) -> tuple[str, float]:
        """Return the name and the mean of what the losses (B,) measure, for the progress bar."""


@dataclass
class Ascent:
    """The result of an ascent.

    Attributes:
        images: the best iterate of each image, (B, 3, H, W) in [0, 1].
        losses: the loss of each best iterate, (B,): the guide's plus the penalties.
        canvas: the canvas, with its parameters after the last step.
        steps: number of updates.
        interrupted: whether Ctrl-C ended the ascent early.
        state: the canvas' `state()` at the best iterate of each image, for
            `canvas.load_state_dict`.
        rows: the numbers of the canvas' images that were kept, if some were left out.
    """

    images: Tensor
    losses: Tensor
    canvas: Canvas
    steps: int = 0
    interrupted: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)
    rows: list[int] | None = None

    def _repr_png_(self) -> bytes:
        """Return the images side by side, as a PNG, which Jupyter shows."""
        file = BytesIO()
        strip([to_pil(image) for image in self.images]).save(file, "PNG")
        return file.getvalue()


def ascend(
    canvas: Canvas,
    guide: ImageLoss,
    steps: int,
    optimizer: Optimizer | None = None,
    callback: Callback | None = None,
    progress: bool = True,
    penalties: Sequence[Penalty] = (),
    tries: int = 1,
) -> Ascent:
    """Change a canvas step by step so that the guide's loss falls, and keep the best iterate.

    Args:
        canvas: renders the images.
        guide: judges them.
        steps: number of updates.
        optimizer: by default the canvas' own.
        callback: called as `callback(step, images, losses)` before each update and once
            after the last, with images (B, 3, H, W) and losses (B,). A true return value
            ends the ascent.
        progress: show a progress bar, and in Jupyter the images. The bar's number is the guide's,
            without penalties.
        penalties: functions from images (B, 3, H, W) to (B,), weights included, that are added to
            the guide's loss: the distance to a content image, total variation, or the `loss` of
            another guide.
        tries: images that follow one another and of which only the best will be kept. Jupyter shows
            the best of them.

    Returns:
        The best iterate of each image. Ctrl-C ends the loop and keeps the best so far.

    Raises:
        ClipagError: `steps` is less than 1.
    """
    check_steps(steps)
    optimizer = optimizer or canvas.optimizer()
    images = canvas.render()
    best = images.detach().clamp(0, 1)
    result = Ascent(best, torch.full((len(best),), torch.inf, device=best.device), canvas)
    result.state = {name: values.detach().clone() for name, values in canvas.state().items()}
    display = new_display(tries) if progress else None
    bar = tqdm(total=steps, unit="step", disable=not progress)
    try:
        # One evaluation more than there are updates: the last update is judged too.
        for step in range(steps + 1):
            guide_losses = guide.loss(images)
            losses = guide_losses + sum(penalty(images) for penalty in penalties)
            shown, reached = images.detach().clamp(0, 1), losses.detach()
            _keep_better(result, shown, reached)
            name, value = guide.readout(guide_losses)
            if display is not None:
                display.show(shown, reached)
            bar.set_postfix({name: f"{value:.3f}"})
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
        if display is not None:
            display.show(result.images, result.losses, is_last=True)
    return result


def _keep_better(result: Ascent, images: Tensor, losses: Tensor) -> None:
    """Replace the images and the state of `result` where the new losses (B,) are lower."""
    better = losses < result.losses
    result.images[better] = images[better]
    result.losses[better] = losses[better]
    for name, values in result.canvas.state().items():
        result.state[name][better] = values.detach()[better]
