"""EfficientNet-Lite, the trunk of the embedded image towers.

The architecture is that of EfficientNet (Tan & Le, ICML 2019) without squeeze-and-excitation and
with ReLU6, as TensorFlow's repository publishes it under the name EfficientNet-Lite. Batch
normalisation has fixed statistics and is folded into the convolutions at every call. So a picture's
gradient never depends on the other pictures of its batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import CLIP_MEAN, CLIP_STD

# TensorFlow's batch normalisation, and its images in [-1, 1].
EPSILON = 1e-3
INPUT_MEAN, INPUT_STD = 0.5, 0.5
STEM, FEATURES = 32, 1280


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks of one shape.

    Attributes:
        kernel: side of the depthwise convolution.
        stride: of the first block.
        expansion: channels inside a block, as a multiple of its input's.
        width: output channels.
        depth: blocks.
    """

    kernel: int
    stride: int
    expansion: int
    width: int
    depth: int


# EfficientNet-B0's stages.
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
# Multipliers of width and depth, which scale all stages but for the first and last stage's depth.
VARIANTS = {
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
}


def stages_of(variant: str) -> tuple[Stage, ...]:
    """Return the stages of "lite0" to "lite4"."""
    width, depth = VARIANTS[variant]
    return tuple(
        Stage(
            stage.kernel,
            stage.stride,
            stage.expansion,
            _multiple_of_8(stage.width * width),
            # The ceiling, in whole numbers: 1.1 * 10 is a little more than 11.
            stage.depth
            if stage in (STAGES[0], STAGES[-1])
            else -(-stage.depth * round(10 * depth) // 10),
        )
        for stage in STAGES
    )


def _multiple_of_8(width: float) -> int:
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


class NormedConv(nn.Module):
    """A convolution and its batch normalisation with fixed statistics.

    The gain and the statistics scale the weights at every call. That costs next to nothing, and
    leaves the weights as well scaled for the optimiser as they were with batch normalisation.
    Padding is TensorFlow's "same", which puts the odd pixel on the right and at the bottom.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        nn.init.kaiming_normal_(self.weight)
        self.gain = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("variance", torch.ones(outputs))
        self.mean: Tensor
        self.variance: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, ceil(H / stride), ceil(W / stride))."""
        scale = self.gain * (self.variance + EPSILON).rsqrt()
        weight = self.weight * scale[:, None, None, None]
        bias = self.bias - self.mean * scale
        kernel = self.weight.shape[-1]
        needed = [
            max((-(-n // self.stride) - 1) * self.stride + kernel - n, 0) for n in x.shape[-2:]
        ]
        (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in needed)
        if top != bottom or left != right:
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, weight, bias, self.stride, (top, left), groups=self.groups)


class LiteBlock(nn.Module):
    """Inverted residual (Sandler et al., CVPR 2018): expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        self.expand = NormedConv(inputs, width, 1) if expansion > 1 else None
        self.depthwise = NormedConv(width, width, kernel, stride, groups=width)
        self.project = NormedConv(width, outputs, 1)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.is_residual else y


class LiteTower(nn.Module):
    """EfficientNet-Lite and a linear map onto the texts' embeddings.

    Maps (B, 3, S, S), normalised with CLIP's mean and standard deviation, to (B, embed_dim). S is
    any number from 32.

    Args:
        embed_dim: width of the embedding.
        variant: "lite0" to "lite4".
    """

    # bfloat16 is no faster for depthwise convolutions on CPUs, and turns the gradient: its cosine
    # with float32's is 0.91.
    needs_float32_on_cpu = True

    def __init__(self, embed_dim: int, variant: str):
        super().__init__()
        self.stem = NormedConv(3, STEM, 3, stride=2)
        blocks: list[LiteBlock] = []
        inputs = STEM
        for stage in stages_of(variant):
            for number in range(stage.depth):
                stride = stage.stride if number == 0 else 1
                blocks.append(LiteBlock(inputs, stage.width, stage.kernel, stride, stage.expansion))
                inputs = stage.width
        self.blocks = nn.Sequential(*blocks)
        self.top = NormedConv(inputs, FEATURES, 1)
        self.head = nn.Linear(FEATURES, embed_dim)
        mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
        self.register_buffer("scale", (std / INPUT_STD)[:, None, None], persistent=False)
        self.register_buffer(
            "shift", ((mean - INPUT_MEAN) / INPUT_STD)[:, None, None], persistent=False
        )
        self.scale: Tensor
        self.shift: Tensor

    def features(self, x: Tensor) -> Tensor:
        """Return the features (B, 1280) before the last linear map."""
        x = self.blocks(F.relu6(self.stem(x * self.scale + self.shift)))
        return F.relu6(self.top(x)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return image embeddings (B, embed_dim), not normalised."""
        embedding: Tensor = self.head(self.features(x))
        return embedding
