"""The named models: where their weights are, their threat models, licences and papers."""

from dataclasses import dataclass

CLIPAG = "Ganz & Elad, CLIPAG: Towards Generator-Free Text-to-Image Generation, WACV 2024"
FARE = "Schlarmann et al., Robust CLIP (FARE), ICML 2024"
TECOA = (
    "Mao et al., Understanding Zero-Shot Adversarial Robustness for Large-Scale Models "
    "(TeCoA), ICLR 2023"
)
OPENAI = (
    "Radford et al., Learning Transferable Visual Models From Natural Language Supervision "
    "(CLIP), ICML 2021"
)
OPENCLIP = "Cherti et al., Reproducible Scaling Laws for Contrastive Learning, CVPR 2023"


@dataclass(frozen=True)
class Source:
    """Where a named model's weights are, and how they were made.

    Attributes:
        place: "embedded", "hub" or "zenodo".
        address: the embedded model's name, the Hub's "owner/name", or Zenodo's "record/file".
        architecture: open_clip's name of the architecture; "mini" for the embedded models.
        megabytes: size of the weights file.
        threat_model: the attack that the image tower was trained against; "none" if vanilla.
        licence: of the weights.
        citation: the paper to cite.
    """

    place: str
    address: str
    architecture: str
    megabytes: int
    threat_model: str
    licence: str
    citation: str

    @property
    def embedded(self) -> bool:
        """Whether the weights are inside the package."""
        return self.place == "embedded"


def _robust(repo: str, tower: str, megabytes: int, radius: int, paper: str) -> Source:
    threat = f"L∞, eps {radius}/255"
    return Source("hub", f"chs20/{repo}", tower, megabytes, threat, "see its model card", paper)


def _openai(repo: str, tower: str, megabytes: int) -> Source:
    return Source("hub", f"timm/{repo}.openai", tower, megabytes, "none", "MIT", OPENAI)


CONVNEXT = "convnext_base_w-laion2B-s13B-b82K-augreg"
MODELS = {
    "clipag-mini": Source("embedded", "clipag-mini", "mini", 18, "L2", "MIT", CLIPAG),
    "clip-mini": Source("embedded", "clip-mini", "mini", 18, "none", "MIT", CLIPAG),
    "clipag-lite": Source("embedded", "clipag-lite", "mini", 22, "L2", "MIT, Apache-2.0", CLIPAG),
    "clip-lite": Source("embedded", "clip-lite", "mini", 22, "none", "MIT, Apache-2.0", CLIPAG),
    "ViT-B/32": Source(
        "zenodo", "10446026/CLIPAG_ViTB32.pt", "ViT-B-32", 605, "L2, eps 1.5",
        "see Zenodo record 10446026", CLIPAG,
    ),
    "FARE4-ViT-B/32": _robust("FARE4-ViT-B-32-laion2B-s34B-b79K", "ViT-B-32", 605, 4, FARE),
    "TeCoA4-ViT-B/32": _robust("TeCoA4-ViT-B-32-laion2B-s34B-b79K", "ViT-B-32", 605, 4, TECOA),
    "FARE4-ViT-B/16": _robust("FARE4-ViT-B-16-laion2B-s34B-b88K", "ViT-B-16", 599, 4, FARE),
    "TeCoA4-ViT-B/16": _robust("TeCoA4-ViT-B-16-laion2B-s34B-b88K", "ViT-B-16", 599, 4, TECOA),
    "FARE4-ConvNeXt-B": _robust(f"FARE4-{CONVNEXT}", "convnext_base_w", 718, 4, FARE),
    "TeCoA4-ConvNeXt-B": _robust(f"TeCoA4-{CONVNEXT}", "convnext_base_w", 718, 4, TECOA),
    "FARE2-ViT-L/14": _robust("fare2-clip", "ViT-L-14", 1711, 2, FARE),
    "FARE4-ViT-L/14": _robust("fare4-clip", "ViT-L-14", 1711, 4, FARE),
    "TeCoA2-ViT-L/14": _robust("tecoa2-clip", "ViT-L-14", 1711, 2, TECOA),
    "TeCoA4-ViT-L/14": _robust("tecoa4-clip", "ViT-L-14", 1711, 4, TECOA),
    # CLIPAG, FARE and TeCoA at ViT-B/32 were fine-tuned from this one.
    "vanilla:ViT-B-32-laion2B": Source(
        "hub", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "ViT-B-32", 605, "none", "MIT", OPENCLIP
    ),
    "vanilla:RN50": _openai("resnet50_clip", "RN50", 408),
    "vanilla:RN101": _openai("resnet101_clip", "RN101", 479),
    "vanilla:RN50x4": _openai("resnet50x4_clip", "RN50x4", 713),
    "vanilla:RN50x16": _openai("resnet50x16_clip", "RN50x16", 1164),
    "vanilla:RN50x64": _openai("resnet50x64_clip", "RN50x64", 2493),
    "vanilla:ViT-B/32": _openai("vit_base_patch32_clip_224", "ViT-B-32", 605),
    "vanilla:ViT-B/16": _openai("vit_base_patch16_clip_224", "ViT-B-16", 599),
    "vanilla:ViT-L/14": _openai("vit_large_patch14_clip_224", "ViT-L-14", 1711),
    "vanilla:ViT-L/14@336px": _openai("vit_large_patch14_clip_336", "ViT-L-14-336", 1712),
}  # fmt: skip
