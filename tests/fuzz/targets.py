"""Every reader of files from elsewhere: its name, valid files, and the public function."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

import clipag_plugins as clip
from clipag_plugins import latents, mini, mixture, pictures
from clipag_plugins.base import CLIP_MEAN, CLIP_STD
from clipag_plugins.evaluation import folders, judges
from clipag_plugins.finetune import checkpoint, config, progress, settings, sources
from clipag_plugins.integrations import pydiffvg, strokes
from clipag_plugins.integrations.clipstyler import network
from clipag_plugins.integrations.vqgan import weights as vqgan
from clipag_plugins.prior import files as priors
from clipag_plugins.prior.network import Shape
from clipag_plugins.vit import CLIP

from . import hostile
from .mutators import BINARY, PICTURE, TENSORS, TEXT, WEIGHTS, Mutator

MODEL_CFG = {
    "embed_dim": 4,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 10, "width": 8, "heads": 1, "layers": 1},
}
MINI_CFG = {
    "embed_dim": 4,
    "vision_cfg": {"image_size": 16, "widths": [8, 8, 8], "depths": [1, 0, 1]},
    "text_cfg": {"context_length": 77, "vocab_size": 10, "width": 8, "heads": 1, "layers": 1,
                 "memory": 2},
}  # fmt: skip
DDCONFIG = {
    "ch": 32, "out_ch": 3, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [],
    "in_channels": 3, "resolution": 16, "z_channels": 4, "dropout": 0.0, "double_z": False,
}  # fmt: skip
VQGAN_YAML = """\
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 4
    n_embed: 3
    ddconfig: {ddconfig}
    lossconfig:
      target: taming.modules.losses.vqperceptual.DummyLoss
"""
COCO = {"images": [{"id": 1}], "annotations": [{"id": 1, "caption": "A red apple."},
                                               {"id": 2, "caption": "Two\ncats"}]}  # fmt: skip
RECIPE = """\
model = "clip-mini"
objective = "clipag"
steps = 10
batch = 8
micro_batch = 4
lr = 2e-5
betas = [0.9, 0.98]
streams = 2
prompts = ["a red apple"]

[threat]
norm = "linf"
eps = "2/255"
attack_steps = 2

[[data]]
kind = "table"
path = "captions.csv"
weight = 2

[validation]
kind = "classes"
path = "val"
"""
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="64" height="64">
<defs><linearGradient id="a" x1="0%" x2="1"><stop offset="0" stop-color="red"/>
<stop offset="50%" style="stop-color: #00f; stop-opacity: 0.5"/></linearGradient>
<radialGradient id="b" href="#a" r="0.5" gradientTransform="rotate(10)"/></defs>
<g opacity="0.5" transform="translate(3 4) scale(2)"><rect id="r" x="1" y="2" width="9" height="8"
rx="2" fill="url(#a)"/><use href="#r" x="5"/></g>
<path d="M 5 5 C 1 2 3 4 9 9 Q 8 7 6 5 A 5 5 0 1 0 9 9 L 1 1 h 3 v 4 z" stroke="#e63946"
stroke-width="2px" fill="none"/><circle cx="20" cy="20" r="5" fill="url(#b)"/>
<polygon points="1,2 3,4 5,1" style="fill: rgba(1, 2, 3, 0.5)"/><ellipse rx="3" ry="4"/>
<text x="1" y="9">a</text><line x1="1" y1="1" x2="9" y2="9" stroke="hsl(10, 50%, 50%)"/></svg>
"""


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        filename: the name that files get; its ending may tell the reader their format.
        valid: makes valid files by name.
        read: the public function that reads a file.
        mutators: what damages the files.
        hostile: makes files that attack; the reader must refuse them, or read them as harmless.
        refused: names of valid files that the reader refuses, and should.
        examples: files that `make test` tries, some seconds' worth.
    """

    filename: str
    valid: Callable[[], Mapping[str, bytes]]
    read: Callable[[Path], object]
    mutators: Sequence[Mutator]
    hostile: Callable[[], Mapping[str, bytes]] = dict
    examples: int = 200
    refused: Sequence[str] = ()

    @property
    def seeds(self) -> list[bytes]:
        """All files to start from."""
        return _seeds(self)


@cache
def _seeds(target: Target) -> list[bytes]:
    # Attacks are mutated too, but valid files more often: more of the reader runs.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        valid = list(target.valid().values())
    small = [each for each in target.hostile().values() if len(each) < 2**20]
    return valid * (1 + len(small) // len(valid)) + small


# Weights


@cache
def _clip() -> CLIP:
    torch.manual_seed(0)
    model = CLIP(4, 16, 1, 8, 8, 77, 10, 8, 1, 1).eval()
    assert isinstance(model, CLIP)
    return model


@cache
def _state() -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in _clip().state_dict().items()}


def _checkpoints() -> dict[str, bytes]:
    state = _state()
    lightning = {"state_dict": state, "epoch": 3, "callbacks": {"x": 1.5}, "lr": [1e-4]}
    half = {key: value.half() for key, value in state.items()}
    return {
        "zip": hostile.saved(state),
        "legacy": hostile.saved(state, _use_new_zipfile_serialization=False),
        "wrapped": hostile.saved(lightning),
        "data parallel": hostile.saved({f"module.{key}": value for key, value in half.items()}),
    }


def _scripts() -> dict[str, bytes]:
    class Weights(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Weights()
    for key, value in _state().items():
        *parents, name = key.split(".")
        module: torch.nn.Module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, Weights())
            module = getattr(module, parent)
        module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    target = io.BytesIO()
    torch.jit.save(torch.jit.script(root), target)
    return {"script": target.getvalue()}


def _safetensors() -> dict[str, bytes]:
    state = {key: value.contiguous() for key, value in _state().items()}
    return {"plain": save(state), "marked": save(state, {"format": "pt", "quick_gelu": "true"})}


@cache
def _weights_attacks() -> dict[str, bytes]:
    return {**hostile.pickles(), **hostile.archives()}


def _read_model(path: Path) -> None:
    model = clip.load_model(path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# Folders: the file that is read lies beside valid ones.


def _config(**changes: object) -> bytes:
    preprocessing = {"mean": CLIP_MEAN, "std": CLIP_STD, "resize_mode": "shortest"}
    full = {"model_cfg": {**MODEL_CFG, **changes}, "preprocess_cfg": preprocessing, "name": "x"}
    return json.dumps(full, indent=1).encode()


def _configs() -> dict[str, bytes]:
    timm = {"timm_model_name": "convnext_atto", "image_size": 64, "timm_pool": "",
            "timm_proj": "linear"}  # fmt: skip
    resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
    return {
        "plain": _config(quick_gelu=True),
        "ResNet": _config(vision_cfg=resnet, custom_text=True),
        "timm": _config(vision_cfg=timm),
    }


def _read_open_clip_folder(path: Path) -> None:
    if path.suffix == ".json":
        (path.parent / "open_clip_model.safetensors").write_bytes(_safetensors()["plain"])
    else:
        (path.parent / "open_clip_config.json").write_bytes(_config())
    clip.ClipagModel.from_pretrained(str(path.parent))


def _mini_configs() -> dict[str, bytes]:
    return {"mini": json.dumps({"clipag": "mini", "name": "x", "model_cfg": MINI_CFG}).encode()}


@cache
def _mini_weights() -> bytes:
    weights = mini.build_model(MINI_CFG, "x").weights()
    return save({key: value.detach().contiguous() for key, value in weights.items()})


def _read_mini_folder(path: Path) -> None:
    (path.parent / "model.safetensors").write_bytes(_mini_weights())
    clip.load_model(path.parent)


# VQGANs, mixtures, style networks, aesthetic heads


def _yamls() -> dict[str, bytes]:
    text = VQGAN_YAML.replace("{ddconfig}", json.dumps(DDCONFIG))
    inner = "".join(f"        {line}\n" for line in text.splitlines()[1:])
    outer = "model:\n  target: x.Net2NetTransformer\n  params:\n    first_stage_config:\n"
    return {
        "VQModel": text.encode(),
        "GumbelVQ": text.replace("VQModel", "GumbelVQ").encode(),
        "transformer": (outer + inner).encode(),
    }


@cache
def _vqgan_checkpoint() -> bytes:
    models = vqgan.taming("models.vqgan")
    identity = {"target": "torch.nn.Identity"}
    model = models.VQModel(ddconfig=DDCONFIG, lossconfig=identity, n_embed=3, embed_dim=4)
    return hostile.saved({"state_dict": model.state_dict(), "global_step": 5})


def _read_vqgan_yaml(path: Path) -> None:
    (path.parent / "model.ckpt").write_bytes(_vqgan_checkpoint())
    vqgan.load_vqgan(path.parent / "model.ckpt", path)


def _read_vqgan_checkpoint(path: Path) -> None:
    path.with_suffix(".yaml").write_bytes(_yamls()["VQModel"])
    vqgan.load_vqgan(path)


def _mixtures() -> dict[str, bytes]:
    return {"mixture": save({"means": torch.rand(2, 768), "factors": torch.rand(2, 768, 1)})}


def _sample_mixture(path: Path) -> None:
    images = mixture.load(path).sample(1, torch.Generator().manual_seed(0))
    assert images.isfinite().all()


def _embeddings() -> dict[str, bytes]:
    arrays = {"one": np.ones(4, np.float32), "two": np.eye(2, 4), "half": np.ones(4, np.float16)}
    files = {}
    for name, array in arrays.items():
        target = io.BytesIO()
        np.save(target, array)
        files[name] = target.getvalue()
    return files


@cache
def _mini() -> clip.ClipagModel:
    return mini.build_model(MINI_CFG, "x").eval()


def _priors() -> dict[str, bytes]:
    files = {}
    for kind in ("diffusion", "autoregressive"):
        shape = Shape(kind, 4, 8, text_length=2, width=4, layers=1, heads=1, components=2,
                      buckets=2)  # fmt: skip
        state = {name: value.half() for name, value in priors.build(shape).state_dict().items()}
        metadata = {"prior": json.dumps(vars(shape)), "tower": priors.fingerprint(_mini())}
        files[kind] = save(state, metadata)
    return files


def _style_networks() -> dict[str, bytes]:
    state = network.StyleNetwork(1).state_dict()
    return {"network": save(state, {"prompt": "a fire", "seed": "0", "steps": "200"})}


def _aesthetic_heads() -> dict[str, bytes]:
    layers = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    return {"head": hostile.saved(layers.state_dict())}


# Pictures


def _pictures() -> dict[str, bytes]:
    gradient = Image.linear_gradient("L").resize((16, 12))
    picture = Image.merge("RGB", (gradient, gradient.rotate(90).resize((16, 12)), gradient))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = {"save_all": True, "append_images": [picture.rotate(9)], "duration": 20, "loop": 0}
    text = PngInfo()
    text.add_itxt("prompt", "ein Apfel \U0001f34e")
    text.add_text("model", "clipag-mini", zip=True)
    variants: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "RGB": (picture, "PNG", {"pnginfo": text}),
        "palette": (picture.quantize(7), "PNG", {"transparency": 1}),
        "16 bits": (gradient.convert("I;16"), "PNG", {}),
        "grey and alpha": (picture.convert("LA"), "PNG", {}),
        "one bit": (gradient.convert("1"), "PNG", {}),
        "animated PNG": (picture, "PNG", frames),
        "turned PNG": (picture, "PNG", {"exif": turned}),
        "JPEG": (picture, "JPEG", {}),
        "turned JPEG": (picture, "JPEG", {"exif": turned}),
        "progressive JPEG": (picture, "JPEG", {"progressive": True}),
        "CMYK": (picture.convert("CMYK"), "JPEG", {}),
        "WebP": (picture.convert("RGBA"), "WEBP", {"lossless": True}),
        "animated WebP": (picture, "WEBP", frames),
        "GIF": (picture, "GIF", {}),
        "animated GIF": (picture, "GIF", frames),
        "TIFF": (picture.convert("RGBA"), "TIFF", {"compression": "tiff_lzw"}),
        "floating-point TIFF": (gradient.convert("F"), "TIFF", {}),
        "BMP": (picture, "BMP", {}),
    }
    files = {}
    for name, (image, kind, options) in variants.items():
        target = io.BytesIO()
        image.save(target, kind, **options)
        files[name] = target.getvalue()
    return files


def _pngs() -> dict[str, bytes]:
    return {name: file for name, file in _pictures().items() if file[1:4] == b"PNG"}


def _read_picture(path: Path) -> None:
    square = pictures.read_square(path, 16)
    assert square.shape == (3, 16, 16) and 0 <= square.min() <= square.max() <= 1


# The trainer's files


class _Parts:
    """What a run of the trainer restores, on a small scale."""

    def __init__(self) -> None:
        tower = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(tower.parameters())
        tower(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        self.parts = {
            "recipe": checkpoint.Recipe({"lr": 1e-3, "seed": 0}),
            "progress": progress.Progress({0: {"skipped": 1}}, 1.5, "float32"),
            "tower": tower,
            "average": checkpoint.Averaged(tower, 0.9),
            "optimizer": optimizer,
        }


def _resume_files() -> dict[str, bytes]:
    state = {name: part.state_dict() for name, part in _Parts().parts.items()}
    return {"checkpoint": hostile.saved({"step": 4, **state})}


def _resume(path: Path) -> None:
    parts = _Parts().parts
    step = checkpoint.restore_last(path.parent, parts)
    assert type(step) is int and step >= 0


def _recipes() -> dict[str, bytes]:
    files = {path.stem: path.read_bytes() for path in config.CONFIGS.glob("*.toml")}
    return {**files, "all": RECIPE.encode()}


def _read_table(kind: str, path: Path) -> None:
    sources.open_source(settings.Source(kind="table", path=str(path)))


def _tables() -> dict[str, bytes]:
    return {"csv": b'image,caption,n\na.png,"a red, ""large"" apple",1\nb.png,two cats,2\n'}


def _json_tables() -> dict[str, bytes]:
    return {"jsonl": b'{"image": "a.png", "caption": "a"}\n{"image": "b.png", "caption": "b"}\n'}


# Texts


def _prompts() -> dict[str, bytes]:
    return {"prompts": "a red apple\n\nein Schloß\r\n\u96ea\n".encode(), "one": b"a fox"}


def _palettes() -> dict[str, bytes]:
    return {"palette": b"e63946,#f1faee,black,#12345678,fff"}


def _read_palette(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    colours = strokes.read_palette(text.split(","))
    assert colours.ndim == 2 and colours.shape[1] == 3 and 0 <= colours.min() <= colours.max() <= 1


def _read_scene(path: Path) -> None:
    width, height, shapes, groups = pydiffvg.svg_to_scene(path)
    assert isinstance(width, int) and isinstance(height, int) and len(groups) <= len(shapes)


TARGETS = {
    "pt": Target("x.pt", _checkpoints, _read_model, WEIGHTS, _weights_attacks, 600),
    "torchscript": Target("x.pt", _scripts, _read_model, WEIGHTS, _weights_attacks, 600),
    "safetensors": Target(
        "x.safetensors", _safetensors, _read_model, TENSORS, hostile.tensors, 600
    ),
    "bin": Target(
        "open_clip_pytorch_model.bin", _checkpoints, _read_open_clip_folder, WEIGHTS,
        _weights_attacks, 300,
    ),
    "open_clip_config": Target(
        "open_clip_config.json", _configs, _read_open_clip_folder, TEXT, hostile.configs, 150,
        ("ResNet", "timm"),
    ),
    "config": Target("config.json", _mini_configs, _read_mini_folder, TEXT, hostile.configs, 200),
    "vqgan_yaml": Target("x.yaml", _yamls, _read_vqgan_yaml, TEXT, hostile.configs, 80,
                         ("GumbelVQ",)),
    "vqgan_ckpt": Target(
        "x.ckpt", lambda: {"ckpt": _vqgan_checkpoint()}, _read_vqgan_checkpoint, WEIGHTS,
        hostile.archives, 80,
    ),
    "mixture": Target("x.safetensors", _mixtures, _sample_mixture, TENSORS, hostile.tensors, 200),
    "embeddings": Target("x.npy", _embeddings, latents.read_embeddings, (*BINARY, *TEXT),
                         hostile.archives, 200),
    "prior": Target("x.safetensors", _priors, lambda path: priors.load_prior(path, _mini()),
                    TENSORS, hostile.tensors, 200),
    "style_network": Target(
        "x.safetensors", _style_networks, network.load, TENSORS, hostile.tensors, 200
    ),
    "aesthetic": Target("x.pth", _aesthetic_heads, judges.AestheticHead, WEIGHTS,
                        hostile.archives, 200),
    "picture": Target("x.png", _pictures, _read_picture, PICTURE, hostile.pictures, 400,
                      ("floating-point TIFF",)),
    "png_metadata": Target(
        "a-red-apple-0.png", _pngs,
        lambda path: folders.find_pictures(path.parent, ["a red apple"]),
        PICTURE, hostile.pictures, 200,
    ),
    "svg": Target("x.svg", lambda: {"svg": SVG.encode()}, _read_scene, TEXT, hostile.svgs, 200),
    "resume": Target("00000004.pt", _resume_files, _resume, WEIGHTS, _weights_attacks, 150),
    "recipe": Target("x.toml", _recipes, lambda path: config.read(str(path)), TEXT,
                     hostile.configs, 300),
    "table": Target("x.csv", _tables, partial(_read_table, "csv"), TEXT, hostile.configs, 200),
    "jsonl": Target("x.jsonl", _json_tables, partial(_read_table, "jsonl"), TEXT, hostile.configs,
                    200),
    "prompts": Target("x.txt", _prompts, folders.read_prompts, TEXT, hostile.configs, 200),
    "coco": Target("x.json", lambda: {"coco": json.dumps(COCO).encode()}, folders.read_prompts,
                   TEXT, hostile.configs, 300),
    "palette": Target("x.txt", _palettes, _read_palette, (*TEXT, *BINARY), hostile.configs, 200),
}  # fmt: skip
