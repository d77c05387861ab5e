"""Nodes for ComfyUI.

ComfyUI reads the two tables below. They import no torch, and nothing of ComfyUI.
"""

from clipag_plugins.integrations.comfyui.drawing import DrawWithVqgan, Sample
from clipag_plugins.integrations.comfyui.goals import (
    CombineTargets,
    EmbeddingTarget,
    ImageTarget,
    TextTarget,
)
from clipag_plugins.integrations.comfyui.guidance import GuideDiffusion
from clipag_plugins.integrations.comfyui.inversion import Invert
from clipag_plugins.integrations.comfyui.loaders import LoadModel, LoadVqgan
from clipag_plugins.integrations.comfyui.seeing import Explain, Score
from clipag_plugins.integrations.comfyui.strokes import Draw
from clipag_plugins.integrations.comfyui.styling import Style

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

# A workflow names nodes by these names, so they never change.
NODE_CLASS_MAPPINGS: dict[str, type] = {
    "ClipagLoadModel": LoadModel,
    "ClipagLoadVqgan": LoadVqgan,
    "ClipagTextTarget": TextTarget,
    "ClipagImageTarget": ImageTarget,
    "ClipagEmbeddingTarget": EmbeddingTarget,
    "ClipagCombineTargets": CombineTargets,
    "ClipagSample": Sample,
    "ClipagDraw": Draw,
    "ClipagVqgan": DrawWithVqgan,
    "ClipagStyle": Style,
    "ClipagInvert": Invert,
    "ClipagScore": Score,
    "ClipagExplain": Explain,
    "ClipagGuideDiffusion": GuideDiffusion,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ClipagLoadModel": "CLIPAG Load Model",
    "ClipagLoadVqgan": "CLIPAG Load VQGAN",
    "ClipagTextTarget": "CLIPAG Text Target",
    "ClipagImageTarget": "CLIPAG Image Target",
    "ClipagEmbeddingTarget": "CLIPAG Embedding Target",
    "ClipagCombineTargets": "CLIPAG Combine Targets",
    "ClipagSample": "CLIPAG Sample",
    "ClipagDraw": "CLIPAG Draw (SVG)",
    "ClipagVqgan": "CLIPAG VQGAN",
    "ClipagStyle": "CLIPAG Style",
    "ClipagInvert": "CLIPAG Invert (Variations)",
    "ClipagScore": "CLIPAG Score",
    "ClipagExplain": "CLIPAG Explain",
    "ClipagGuideDiffusion": "CLIPAG Guide Diffusion",
}
