"""Where weights come from: the package, a file, a folder, the Hub, Zenodo. Checked before use."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import architecture, checkpoint, download
from .errors import ClipagError
from .files import write_beside
from .mini import build_towers
from .model import CLIP_MEAN, CLIP_STD, ClipagModel, ImageTower, MiniClip
from .vit import CLIP

EMBEDDED = Path(__file__).parent / "weights"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
# Names that OpenCLIP repositories have given their weights, the safe format first.
WEIGHTS = (OPEN_CLIP_WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
REPOSITORY = r"[\w.-]+/[\w.-]+"
FILES = (".bin", ".pt", ".pth", ".safetensors")  # a name that ends so is a file's
MINI_CONFIG, MINI_WEIGHTS = "config.json", "model.safetensors"

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
    """Where a named model's weights are, and what they are.

    Attributes:
        place: "embedded", "hub" or "zenodo".
        address: the embedded name, the Hub's "owner/name", or Zenodo's "record/file".
        architecture: the towers, in open_clip's words.
        megabytes: size of the download.
        threat_model: what its image tower was trained against; "none" if vanilla.
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
    "clipag-mini": Source("embedded", "clipag-mini", "mini", 35, "L2", "MIT", CLIPAG),
    "clip-mini": Source("embedded", "clip-mini", "mini", 35, "none", "MIT", CLIPAG),
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
    # What CLIPAG, FARE and TeCoA at ViT-B/32 started from.
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


def load(name: str | os.PathLike[str], download_root: str | Path | None = None) -> ClipagModel:
    """Load a named model, a checkpoint file, a folder or a Hub repository, on the CPU.

    Raises:
        ClipagError: there is no such model, it cannot be had, or it is damaged.
    """
    known = os.fspath(name)
    if known in MODELS:
        model = _load_named(known, MODELS[known], download_root)
        model.source = MODELS[known]
        return model
    path = Path(known).expanduser()
    if path.is_file() and _has_config_beside(path):
        return from_pretrained(str(path.parent))
    if path.is_file():
        return architecture.from_state(checkpoint.read(path), str(path), path.name)
    if f"vanilla:{known}" in MODELS:
        raise ClipagError(
            f"There is no CLIPAG of {known}: 'vanilla:{known}' is OpenAI's, and robust are "
            f"{', '.join(key for key in MODELS if not key.startswith(('vanilla', 'clip-')))}."
        )
    if path.is_dir() or (re.fullmatch(REPOSITORY, known) and path.suffix not in FILES):
        return from_pretrained(known, cache_dir=download_root)
    raise ClipagError(
        f"There is no model or weights file called {known!r}; known are {', '.join(MODELS)}."
    )


def _has_config_beside(path: Path) -> bool:
    """Say whether a file is the weights of a folder that also says what model they are."""
    if path.name in WEIGHTS:
        return (path.parent / OPEN_CLIP_CONFIG).is_file()
    config = path.parent / MINI_CONFIG
    return path.name == MINI_WEIGHTS and config.is_file() and "clipag" in _read_config(config)


def pull(name: str, download_root: str | Path | None = None) -> Path:
    """Fetch a named model or a Hub repository, and return where its weights are.

    Raises:
        ClipagError: there is no such model, or it cannot be had.
    """
    source = MODELS.get(name)
    if source is None:
        if not re.fullmatch(REPOSITORY, name):
            raise ClipagError(f"There is no model {name!r}; known are {', '.join(MODELS)}.")
        return _repository(name, None, download_root, None)[1]
    if source.place == "embedded":
        return embedded_file(embedded_config()["models"][name]["image"])
    if source.place == "zenodo":
        record, filename = source.address.split("/")
        return download.zenodo_file(record, filename, download.cache_folder(download_root))
    return _repository(source.address, None, download_root, None)[1]


def is_cached(name: str) -> bool:
    """Say whether a named model works without a download."""
    source = MODELS[name]
    if source.place == "zenodo":
        return (download.cache_folder() / source.address.split("/")[1]).is_file()
    return source.embedded or any(download.is_cached(source.address, file) for file in WEIGHTS)


def _load_named(name: str, source: Source, root: str | Path | None) -> ClipagModel:
    if source.place == "embedded":
        return _load_embedded(name)
    if source.place == "hub":
        model = from_pretrained(source.address, cache_dir=root)
        model.name = name
        return model
    path = pull(name, root)
    state = architecture.clean(checkpoint.read(path))
    # The authors trained OpenCLIP's ViT-B-32, whose activation is plain GELU.
    config = architecture.infer_config(state, str(path))
    return architecture.from_config(config, state, str(path), name)


def from_pretrained(
    repo_or_dir: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> ClipagModel:
    """Load a Hub repository, or a folder laid out like one, on the CPU.

    Raises:
        ClipagError: it cannot be had, or its files are not such a model.
    """
    config_path, weights_path = _repository(repo_or_dir, revision, cache_dir, token)
    config = _read_config(config_path)
    state = architecture.clean(checkpoint.read(weights_path))
    what = str(weights_path)
    if config_path.name == OPEN_CLIP_CONFIG:
        architecture.check_preprocessing(config.get("preprocess_cfg") or {}, repo_or_dir)
        name = str(config.get("name", repo_or_dir))
        return architecture.from_config(config["model_cfg"], state, what, name)
    shape, name = config["model_cfg"], str(config.get("name"))
    architecture.check_config(shape, what)
    with torch.device("meta"):  # shapes first: a config may ask for more memory than there is
        shapes = _mini(shape, name).state_dict()
    architecture.check_tensors(shapes, state, what)
    model = _mini(shape, name)
    architecture.fill(model, state, what)
    model.visual.tower.to(memory_format=torch.channels_last)
    return model


def _repository(
    repo_or_dir: str,
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | bool | None,
) -> tuple[Path, Path]:
    """Return the config and the weights file of a folder or a Hub repository."""
    folder = Path(repo_or_dir).expanduser()
    fetch: Callable[[str], Path | None]
    if folder.is_dir():
        if revision is not None:
            raise ClipagError(
                f"{folder} is a folder and has no revision {revision!r}: leave that out."
            )

        def fetch(filename: str) -> Path | None:
            return folder / filename if (folder / filename).is_file() else None
    else:

        def fetch(filename: str) -> Path | None:
            return download.hub_file(repo_or_dir, filename, revision, cache_dir, token)

    if config := fetch(OPEN_CLIP_CONFIG):
        candidates: tuple[str, ...] = WEIGHTS
    elif config := fetch(MINI_CONFIG):
        if "clipag" not in _read_config(config):
            raise ClipagError(
                f"{repo_or_dir} is for another library: what loads here has {OPEN_CLIP_CONFIG}."
            )
        candidates = (MINI_WEIGHTS,)
    else:
        raise ClipagError(f"{repo_or_dir} has no {OPEN_CLIP_CONFIG}: it is no OpenCLIP model.")
    for filename in candidates:
        if weights := fetch(filename):
            return config, weights
    raise ClipagError(f"{repo_or_dir} has no weights: expected {' or '.join(candidates)}.")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ClipagError(f"{path} is not valid JSON: fetch it again.") from error
    shape = config.get("model_cfg") if isinstance(config, dict) else None
    if path.name == OPEN_CLIP_CONFIG or (isinstance(config, dict) and "clipag" in config):
        parts = ("vision_cfg", "text_cfg")
        if not isinstance(shape, dict) or not all(isinstance(shape.get(p), dict) for p in parts):
            raise ClipagError(f"{path} has no model_cfg with vision_cfg and text_cfg in it.")
    if not isinstance(config, dict):
        raise ClipagError(f"{path} holds {type(config).__name__}, not a config.")
    return config


def save_pretrained(model: ClipagModel, folder: Path, repo: str = "OWNER/NAME") -> Path:
    """Write weights, config and a card that names the repository; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.weights().items()}
    shape = model.config or architecture.infer_config(weights, model.name)
    if isinstance(model, CLIP) and model.quick_gelu:
        shape = {**shape, "quick_gelu": True}
    config: dict[str, Any] = {"name": model.name, "model_cfg": shape}
    if isinstance(model, MiniClip):
        config["clipag"] = "mini"
        names = MINI_CONFIG, MINI_WEIGHTS
    else:
        config["preprocess_cfg"] = {
            "mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic",
            "resize_mode": "shortest",
        }  # fmt: skip
        names = OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
    with write_beside(folder / names[1]) as temporary:
        save_file(weights, temporary, {"format": "pt"})
    for filename, text in (
        (names[0], json.dumps(config, indent=2)),
        ("README.md", card(model, repo)),
    ):
        with write_beside(folder / filename) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return folder


def card(model: ClipagModel, repo: str) -> str:
    """Write a model card in the Hub's format: what the model is, and how to load it."""
    source = model.source  # not by its name, which a folder may claim
    mini = isinstance(model, MiniClip)
    lines = [
        "---",
        f"library_name: {'clipag-plugins' if mini else 'open_clip'}",
        "pipeline_tag: zero-shot-image-classification",
        *(["license: mit"] if source is not None and source.licence == "MIT" else []),
        "tags:",
        "- clip",
        "- clipag",
        "---",
        f"# {model.name}",
        "",
        f"A CLIP with {sum(w.numel() for w in model.weights().values()) / 1e6:.1f} M parameters, "
        f"embeddings of {model.visual.output_dim}, images of {model.visual.native_size} pixels.",
    ]
    if source is not None:
        lines += [
            "",
            f"- architecture: {source.architecture}",
            f"- threat model: {source.threat_model}",
            f"- licence: {source.licence}",
            f"- cite: {source.citation}",
        ]
    lines += ["", "```python", "import clipag_plugins as clip", ""]
    lines += [f'model = clip.ClipagModel.from_pretrained("{repo}")']
    if not mini:
        lines += ["", "import open_clip", ""]
        lines += [f'model, preprocess = open_clip.create_model_from_pretrained("hf-hub:{repo}")']
    return "\n".join([*lines, "```"])


def push_to_hub(
    model: ClipagModel,
    repo_id: str,
    commit_message: str,
    revision: str | None,
    private: bool,
    create_pr: bool,
    token: str | bool | None,
) -> str:
    """Save to a repository of the Hub and return the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    remedy = "check the connection, and that HF_TOKEN may write there"
    with tempfile.TemporaryDirectory() as temporary, download.hub_errors(repo_id, remedy):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        folder = save_pretrained(model, Path(temporary), repo_id)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit)


def convert(path: Path, out: Path) -> ClipagModel:
    """Rewrite a checkpoint as `.safetensors`, and return the model that it holds.

    Raises:
        ClipagError: the file is not a CLIP's checkpoint.
    """
    model = architecture.from_state(checkpoint.read(path), str(path), path.name)
    weights = {key: value.detach().contiguous() for key, value in model.weights().items()}
    activation = "true" if model.config.get("quick_gelu") else "false"
    with write_beside(out) as temporary:
        save_file(weights, temporary, {"format": "pt", "quick_gelu": activation})
    return model


def _load_embedded(name: str) -> ClipagModel:
    config = embedded_config()
    entry = config["models"][name]
    model = _mini(config["model_cfg"], name, entry["logit_scale"])
    image, text, memory = (
        embedded_file(f) for f in (entry["image"], config["text"], config["memory"])
    )
    architecture.fill(model.visual.tower, checkpoint.read(image), str(image))
    # The models share the text tower and the memory's keys; each has values of its own.
    both = checkpoint.read(memory)
    own = {"memory.keys": both["keys"], "memory.values": both[name]}
    architecture.fill(model.text, {**checkpoint.read(text), **own}, str(text))
    model.visual.tower.to(memory_format=torch.channels_last)
    return model


def _mini(shape: dict[str, Any], name: str, logit_scale: float = 0.0) -> MiniClip:
    """Build an embedded model, untrained, from the `model_cfg` of its config."""
    try:
        image_tower, text_tower = build_towers(shape)
        side, text = int(shape["vision_cfg"]["image_size"]), shape["text_cfg"]
        visual = ImageTower(image_tower, side, shape["embed_dim"])
        lengths = text["context_length"], text["vocab_size"]
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ClipagError(f"The config of {name} is not an embedded model's.") from error
    return MiniClip(name, visual, text_tower, logit_scale, *lengths, shape)


def embedded_file(entry: dict[str, str]) -> Path:
    """Return the path of a file of the package, after checking its sha256."""
    path = EMBEDDED / entry["name"]
    digest = download.sha256(path)
    if digest != entry["sha256"]:
        raise ClipagError(f"{path} is damaged (sha256 {digest[:12]}…): reinstall clipag-plugins.")
    return path


def embedded_config() -> dict[str, Any]:
    """Read the config of the embedded models: their shape, files and checksums."""
    config: dict[str, Any] = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    return config
