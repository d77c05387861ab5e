"""Record an ascent: its start, middle and end with an animation, a film, or every step."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .errors import library
from .files import write_beside
from .pictures import save_png, to_pil

FRAMES = 40  # at most, per animation
MILLISECONDS = 80  # per frame
SECONDS = 8  # that a film should last, within the range of rates
SLOWEST, FASTEST = 5, 30  # frames a second of a film
X264 = {"crf": "16", "preset": "veryfast"}  # nearly without loss; slower presets gain little

Recorder = Callable[[int, Tensor, Tensor], bool | None]


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

    def how_to_join(self) -> str:
        """Return a sentence that says how the pictures become a film."""
        # In the pattern of names, ffmpeg reads %05d as the number and %% as %.
        pattern = str(self.folder / self.name).replace("%", "%%") + "-%05d.png"
        film = shlex.quote(f"{self.name}.mp4")
        return (
            "join the frames with ffmpeg -framerate 30 -i "
            f"{shlex.quote(pattern)} -pix_fmt yuv420p {film}, or draw with --video {film}."
        )


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


class Film:
    """A callback of an ascent that makes an H.264 film of each image, with one frame a step.

    The frames are encoded as they come, so the memory holds only the compressed films.

    Args:
        steps: number of steps of the ascent. It sets the rate of frames, so that a film lasts
            about 8 seconds where 5 to 30 frames a second allow it.

    Raises:
        ClipagError: PyAV is not installed.
    """

    def __init__(self, steps: int):
        self._av = library("av", "video")
        self.rate = min(max(steps // SECONDS, SLOWEST), FASTEST)
        self._encoders: dict[int, _Encoder] = {}

    def __call__(self, step: int, images: Tensor, losses: Tensor) -> None:
        """Add the images (B, 3, H, W) of this step to the films."""
        for index, image in enumerate(images):
            self._add(index, image)

    def save(
        self, images: Tensor, paths: Sequence[Path], indices: Sequence[int] | None = None
    ) -> list[Path]:
        """Write the film of each image, which ends with the image itself for a second.

        Args:
            images: the final images (N, 3, H, W).
            paths: the file of each film; its folder is created if the parent of that exists.
            indices: the positions of the final images in the batch of the ascent, as for
                `Trajectory.save`.

        Returns:
            The paths written.
        """
        indices = range(len(images)) if indices is None else indices
        for index, image, path in zip(indices, images, paths, strict=True):
            for _ in range(self.rate):
                self._add(index, image)
            with write_beside(path) as temporary:
                temporary.write_bytes(self._encoders[index].close())
        return list(paths)

    def _add(self, index: int, image: Tensor) -> None:
        """Add a frame (3, H, W) to a film; the first frame opens it."""
        picture = to_pil(image)
        if index not in self._encoders:
            self._encoders[index] = _Encoder(self._av, picture.size, self.rate)
        self._encoders[index].add(picture)


class _Encoder:
    """Encodes pictures of one size (width, height) as an MP4 in memory."""

    def __init__(self, av: Any, size: tuple[int, int], rate: int):
        self._file = BytesIO()
        self._av = av
        self._container = av.open(self._file, "w", "mp4")
        self._stream = self._container.add_stream("libx264", rate, options=X264)
        # H.264 halves the resolution of colour, so the sides are even.
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.thread_count = 1  # the films of a batch are many

    def add(self, picture: Image.Image) -> None:
        """Add a frame; an odd side is made even by repeating the last row or column."""
        width, height = picture.size
        padding = ((0, height % 2), (0, width % 2), (0, 0))
        pixels = np.pad(np.asarray(picture), padding, mode="edge")
        frame = self._av.VideoFrame.from_ndarray(pixels, "rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> bytes:
        """Finish the film and return it."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._file.getvalue()


@dataclass(frozen=True)
class Recording:
    """A callback of an ascent that records it as stills and an animation, as a film, or both."""

    stills: Trajectory | None
    film: Film | None

    def __call__(self, step: int, images: Tensor, losses: Tensor) -> None:
        """Record the images (B, 3, H, W) of this step."""
        in_turn(self.stills, self.film)(step, images, losses)


def in_turn(*recorders: Recorder | None) -> Recorder:
    """Return a callback that calls all the given ones but None, and ends the ascent if one does."""

    def call(step: int, images: Tensor, losses: Tensor) -> bool:
        # All are called, also after one that ends the ascent.
        answers = [recorder(step, images, losses) for recorder in recorders if recorder]
        return any(answers)

    return call


def save_gif(frames: Sequence[Image.Image], path: Path, milliseconds: int = MILLISECONDS) -> None:
    """Write an animation that loops forever, with so many milliseconds a frame."""
    with write_beside(path) as temporary:
        frames[0].save(
            temporary, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0
        )
