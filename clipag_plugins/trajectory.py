"""The trajectory of an ascent: start, middle, end, an animated preview, or every step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from .files import write_beside
from .pictures import save_png, to_pil

FRAMES = 40
MILLISECONDS = 80


class Frames:
    """A callback for the ascent of one image that writes every step as a numbered PNG.

    Args:
        folder: where to; it is made if need be.
        name: what the files are called before their number.
        facts: what each carries, beside the steps that it took.
    """

    def __init__(self, folder: Path, name: str, facts: Mapping[str, object]):
        self.folder = folder
        self.name = name
        self.facts = facts

    def __call__(self, step: int, images: Tensor, losses: Tensor) -> None:
        """Write the image (1, 3, H, W) of this step."""
        path = self.folder / f"{self.name}-{step:05}.png"
        save_png(to_pil(images[0]), path, {**self.facts, "steps": step})


class Trajectory:
    """A callback for the ascent that keeps some forty frames of every image.

    Args:
        steps: length of the ascent.
    """

    def __init__(self, steps: int):
        self.every = -(-steps // FRAMES)
        self.frames: list[list[Image.Image]] = []

    def __call__(self, step: int, images: Tensor, losses: Tensor) -> None:
        """Keep the images (B, 3, H, W) of this step if it is one to keep."""
        if step % self.every == 0:
            self.frames.append([to_pil(image) for image in images])

    def save(
        self,
        folder: Path,
        images: Tensor,
        names: Sequence[Path],
        facts: Sequence[Mapping[str, object]],
        rows: Sequence[int] | None = None,
    ) -> list[Path]:
        """Write {name}-start, -middle, -end .png and .gif to `folder`, and return their paths.

        `images` are those that were kept of the ascent's, `rows` says which (default: all), and
        `facts` what their stills carry, beside the moment.
        """
        written = []
        kept = range(len(images)) if rows is None else rows
        for number, image, name, own in zip(kept, images, names, facts, strict=True):
            frames = [batch[number] for batch in self.frames] + [to_pil(image)]
            stills = {"start": frames[0], "middle": frames[len(frames) // 2], "end": frames[-1]}
            for moment, picture in stills.items():
                path = folder / f"{name.stem}-{moment}.png"
                save_png(picture, path, {**own, "moment": moment})
                written.append(path)
            path = folder / f"{name.stem}.gif"
            save_gif(frames, path)
            written.append(path)
        return written


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Write an animation that runs forever."""
    with write_beside(path) as temporary:
        frames[0].save(
            temporary, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0
        )
