"""What the evaluations take: how they compute, and what pictures are measured with."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ClipagError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ComputeOptions:
    """How an evaluation computes, not what it measures.

    Attributes:
        device: where models run.
        batch: pictures that are drawn, embedded or attacked at once.

    Raises:
        ClipagError: `batch` is less than 1.
    """

    device: "str | torch.device" = "cpu"
    batch: int = 32

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ClipagError(f"`batch` is {self.batch}: it must be at least 1.")


@dataclass(frozen=True)
class PictureMetrics:
    """The models and files that pictures are measured with.

    Attributes:
        judges: CLIPs for similarity and R-Prec, as `judges.load_judge` takes them.
        aesthetic: weights of LAION's aesthetic predictor.
        aesthetic_model: the CLIP that the predictor was made for.
        reference: a folder of real pictures, for FID.
        inception: weights of InceptionV3 for Inception Score and FID; None to download them.
    """

    judges: Sequence[str] = ("ConvNeXt", "ViT-H/14")
    aesthetic: Path | None = None
    aesthetic_model: str = "vanilla:ViT-L/14"
    reference: Path | None = None
    inception: Path | None = None


def require_new_name(name: str, names: Container[str]) -> None:
    """Raise ClipagError if a column of a table already has this name."""
    if name in names:
        raise ClipagError(f"Two `models` are called {name!r}: rename one's file or folder.")
