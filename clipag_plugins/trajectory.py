"""Record an ascent: its start, middle and end with an animation, or every step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from .files import write_beside
from .pictures import save_png, to_pil

FRAMES = 40  # at most, per animation
MILLISECONDS = 80  # per frame


class Frames:
    """A callback of an ascent of one image that writes every step as a numbered PNG.

    Args:
        folder: the folder to write to; created if its parent exists.
        name: the start of each file's name, before the number.
        metadata: what each PNG carries, besides its step.
    """

    def __init__(self, folder: Path, name: str, metadata: Mapping[str, object]):
        self.folder = folder
        self.name = name
        self.metadata = metadata

    def __call__(self, step: int, images: Tensor, losses: Tensor) -> None:
        """Write the image (1, 3, H, W) of this step."""
        path = self.folder / f"{self.name}-{step:05}.png"
        save_png(to_pil(images[0]), path, {**self.metadata, "steps": step})


class Trajectory:
    """A callback of an ascent that keeps at most `FRAMES` evenly spaced frames of each image.

    Args:
        steps: number of steps of the ascent.
    """

    def __init__(self, steps: int):
        self.every = -(-steps // FRAMES)
        self.frames: list[list[Image.Image]] = []

    def __call__(self, step: int, images: Tensor, losses: Tensor) -> None:
        """Keep the images (B, 3, H, W) of this step if it is one of the frames."""
        if step % self.every == 0:
            self.frames.append([to_pil(image) for image in images])

    def save(
        self,
        folder: Path,
        images: Tensor,
        names: Sequence[Path],
        metadata: Sequence[Mapping[str, object]],
        indices: Sequence[int] | None = None,
    ) -> list[Path]:
        """Write {name}-start.png, -middle.png, -end.png and {name}.gif of each image.

        Args:
            folder: the folder to write to; created if its parent exists.
            images: the final images (N, 3, H, W).
            names: a path per image, whose stem names the files.
            metadata: what the PNGs of each image carry, besides the moment.
            indices: the positions of the final images in the batch of the ascent, if the ascent had
                more images; by default 0, 1, ….

        Returns:
            The paths written.
        """
        written = []
        indices = range(len(images)) if indices is None else indices
        for index, image, name, entries in zip(indices, images, names, metadata, strict=True):
            frames = [batch[index] for batch in self.frames] + [to_pil(image)]
            stills = {"start": frames[0], "middle": frames[len(frames) // 2], "end": frames[-1]}
            for moment, picture in stills.items():
                path = folder / f"{name.stem}-{moment}.png"
                save_png(picture, path, {**entries, "moment": moment})
                written.append(path)
            path = folder / f"{name.stem}.gif"
            save_gif(frames, path)
            written.append(path)
        return written


def save_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Write an animation that loops forever."""
    with write_beside(path) as temporary:
        frames[0].save(
            temporary, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0
        )
