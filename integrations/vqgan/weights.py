"""Load VQGANs from a yaml and a checkpoint, a folder, the Hub, or a public address.

Loading is safe: it takes only the shape from a yaml and only the tensors from a checkpoint. It
imports nothing that the yaml names, and runs no pickled code.
"""

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from clipag_plugins import architecture, download, embedded, hub, untrusted
from clipag_plugins.defaults import PUBLIC_VQGANS, VQGAN
from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside
from clipag_plugins.integrations.vqgan.taming import taming
from clipag_plugins.streams import draw_nothing

# The loaded copies of the embedded model. taming's class has no attribute that could say this.
_embedded_models: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Address:
    """Addresses of a public checkpoint.

    Attributes:
        config: of the yaml.
        weights: of the checkpoint.
        megabytes: size of the checkpoint in MB, or 0 if it is unknown.
    """

    config: str
    weights: str
    megabytes: int


def _heidelberg(folder: str, megabytes: int) -> Address:
    home = f"https://heibox.uni-heidelberg.de/d/{folder}/files/?p="
    return Address(
        f"{home}%2Fconfigs%2Fmodel.yaml&dl=1", f"{home}%2Fckpts%2Flast.ckpt&dl=1", megabytes
    )


_PIXRAY = "https://github.com/pixray/pixray/releases/download/v1.7.1/vqgan_wikiart_16384"
_NMKD = "https://dl.nmkd.de/ai/clip/coco/coco"
# From the scripts of VQGAN+CLIP (nerdyrodent/VQGAN-CLIP's download_models.sh) and pixray.
VQGANS = {
    "vqgan_imagenet_f16_16384": _heidelberg("a7530b09fed84f80a887", 980),
    "vqgan_imagenet_f16_1024": _heidelberg("8088892a516d4e3baf92", 958),
    "gumbel_8192": _heidelberg("2e5662443a6b4307b470", 376),
    "wikiart": Address(f"{_PIXRAY}.yaml", f"{_PIXRAY}.ckpt", 1000),
    "coco": Address(f"{_NMKD}.yaml", f"{_NMKD}.ckpt", 8400),
    "faceshq": Address(
        "https://drive.google.com/uc?export=download&id=1fHwGx_hnBtC8nsq7hesJvs-Klv-P0gzT",
        "https://app.koofr.net/content/links/a04deec9-0c59-4673-8b37-3d696fe63a5d/files/get/"
        "last.ckpt?path=%2F2020-11-13T21-41-45_faceshq_transformer%2Fcheckpoints%2Flast.ckpt",
        0,
    ),
}
# File names in taming's folders and repositories. Those that `pull_vqgan` writes come first.
CACHED_FILES = ("config.yaml", "model.safetensors")
CONFIGS = ("config.yaml", "model.yaml", "configs/model.yaml")
WEIGHTS = (
    "model.safetensors", "model.ckpt", "last.ckpt", "ckpts/last.ckpt", "checkpoints/last.ckpt",
)  # fmt: skip

# The parts of a checkpoint that draw. The rest is for training, or a transformer over the codes.
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
SHAPE = {
    "ch", "out_ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "in_channels",
    "resolution", "z_channels", "resamp_with_conv",
}  # fmt: skip
# Limits far beyond any VQGAN: a config beyond them would take all memory.
LARGEST, DEEPEST = 1_000_000, 16


def load_vqgan(name: str | Path = VQGAN, config: str | Path | None = None) -> nn.Module:
    """Load a VQGAN as taming's own `VQModel` or `GumbelVQ`, frozen, on the CPU.

    Args:
        name: "vqgan-mini", a name of `VQGANS`, a checkpoint file, a folder, or a repository of
            the Hub as "owner/name" with taming's yaml and checkpoint in it.
        config: the yaml of a checkpoint file; by default the file of the same name beside it.

    Raises:
        ClipagError: there is no such VQGAN, it cannot be fetched, it is damaged, or yaml and
            checkpoint belong to different models.
    """
    text, path = str(name), Path(name).expanduser()
    if config is not None and not path.is_file():
        raise ClipagError(f"There is no checkpoint {text} for the config {config}.")
    if text == VQGAN:
        entry = embedded.read_config()["vqgan"]
        model = _build(entry["model_cfg"], embedded.checked_path(entry["weights"]), VQGAN)
        _embedded_models.add(model)
        return model
    if text in VQGANS:
        return read_vqgan(*_files(pull_vqgan(text)))
    if path.is_file():
        return read_vqgan(path.with_suffix(".yaml") if config is None else Path(config), path)
    names_file = path.suffix in (*hub.FILES, ".ckpt")  # though there is no such file
    if path.is_dir() or (re.fullmatch(hub.REPOSITORY, text) and not names_file):
        return read_vqgan(*_files(text))
    raise ClipagError(
        f"There is no VQGAN called {text!r}: name a checkpoint, a folder, or one of "
        f"{', '.join((VQGAN, *PUBLIC_VQGANS))}."
    )


def is_embedded(model: nn.Module) -> bool:
    """Say whether a VQGAN is the embedded one, as `load_vqgan` returned it."""
    return model in _embedded_models


def pull_vqgan(name: str) -> Path:
    """Fetch a VQGAN of `VQGANS`, and return the folder with its config and its safetensors.

    Raises:
        ClipagError: it cannot be fetched, or the files are not a VQGAN.
    """
    address, folder = VQGANS[name], _folder(name)
    weights = folder / CACHED_FILES[1]
    if not weights.is_file():
        config = download.web_file(address.config, folder / CACHED_FILES[0])
        fetched = download.web_file(address.weights, folder / "last.ckpt")
        model = read_vqgan(config, fetched)
        with write_beside(weights) as temporary:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary)
        fetched.unlink()  # mostly the optimiser, the loss and the transformer
    return folder


def is_cached(name: str) -> bool:
    """Say whether a VQGAN of `VQGANS` has been downloaded."""
    return (_folder(name) / CACHED_FILES[1]).is_file()


def _folder(name: str) -> Path:
    return download.cache_folder() / "vqgan" / name


def write_embedded(path: Path) -> None:
    """Write the embedded VQGAN in taming's format: `path`, a .ckpt, and a .yaml beside it."""
    params = embedded.read_config()["vqgan"]["model_cfg"]["params"]
    loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
    config = {"target": "taming.models.vqgan.VQModel", "params": {**params, "lossconfig": loss}}
    with write_beside(path) as temporary:
        torch.save({"state_dict": load_vqgan().state_dict()}, temporary)
    with write_beside(path.with_suffix(".yaml")) as temporary:
        temporary.write_text(yaml.safe_dump({"model": config}), encoding="utf-8")


def _files(place: str | Path) -> tuple[Path, Path]:
    """Return the yaml and the weights in a folder or a Hub repository."""
    folder = Path(place).expanduser()
    fetch: Callable[[str], Path | None]
    if folder.is_dir():

        def fetch(filename: str) -> Path | None:
            return folder / filename if (folder / filename).is_file() else None
    else:

        def fetch(filename: str) -> Path | None:
            remedy = (
                "put its yaml and its checkpoint into a folder and name that; "
                f"{VQGAN} needs no download"
            )
            return download.hub_file(str(place), filename, remedy=remedy)

    config = next((file for name in CONFIGS if (file := fetch(name))), None)
    weights = next((file for name in WEIGHTS if (file := fetch(name))), None)
    if config is None or weights is None:
        names = CONFIGS if config is None else WEIGHTS
        raise ClipagError(f"{place} is no VQGAN of taming's: it has none of {', '.join(names)}.")
    return config, weights


def read_vqgan(config: Path, weights: Path) -> nn.Module:
    """Load a VQGAN from a yaml of taming's and a checkpoint.

    In a checkpoint of a transformer over codes (`Net2NetTransformer`), the transformer is ignored.

    Raises:
        ClipagError: a file is missing, damaged or hostile, or they belong to different models.
    """
    if not config.is_file():
        raise ClipagError(f"There is no config {config}: name the yaml that came with {weights}.")
    try:
        if config.stat().st_size > 2**20:
            raise ValueError("larger than any config")
        described: Any = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ClipagError(
            f"{config} is not a yaml file that can be read: fetch it again."
        ) from error
    model = described.get("model") if isinstance(described, dict) else None
    if isinstance(model, dict) and isinstance(model.get("params"), dict):
        # The config of a transformer over codes contains that of the VQGAN.
        model = model["params"].get("first_stage_config", model)
    if not isinstance(model, dict):
        raise ClipagError(f"{config} describes no model: it has no model.target and model.params.")
    return _build(model, weights, f"{weights}, which {config} describes,")


def _build(config: Mapping[str, Any], weights: Path, what: str) -> nn.Module:
    """Build the model of a config in taming's format, {target, params}, and load its weights.

    `what` names it in error messages.
    """
    kind = str(config.get("target")).rpartition(".")[2]
    if kind not in ("VQModel", "GumbelVQ"):
        raise ClipagError(f"{what} is a {kind}: only a VQModel or a GumbelVQ can draw.")
    empty = _empty(kind, config.get("params"), what)
    tensors = {k.removeprefix("first_stage_model."): v for k, v in untrusted.read(weights).items()}
    state: dict[str, Tensor] = {k: v for k, v in tensors.items() if k.startswith(PARTS)}
    if not state:
        raise ClipagError(f"{weights} holds no VQGAN: it has no tensors of a decoder.")
    architecture.load_weights(empty, state, what)
    return empty.eval().requires_grad_(False)


def _empty(kind: str, params: Any, what: str) -> nn.Module:
    """Build taming's model on the meta device, without memory and without its loss."""
    models = taming("models.vqgan")
    unused = {"target": "torch.nn.Identity"}  # losses and schedules are for training
    try:
        shape = {k: v for k, v in params["ddconfig"].items() if k in SHAPE}
        sizes = {"n_embed": params["n_embed"], "embed_dim": params["embed_dim"]}
        _check_sizes({**shape, **sizes}, what)
        arguments = {"ddconfig": {**shape, "double_z": False}, "lossconfig": unused, **sizes}
        if kind == "GumbelVQ":
            arguments["temperature_scheduler_config"] = unused
        # taming prints the shape of every decoder that it makes.
        with torch.device("meta"), draw_nothing(), contextlib.redirect_stdout(io.StringIO()):
            model: nn.Module = getattr(models, kind)(**arguments)
        channels = (shape["in_channels"], shape["out_ch"])
    # taming does not check its arguments, so a bad config may raise any of these.
    except (
        KeyError,
        TypeError,
        AttributeError,
        NameError,
        ValueError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise ClipagError(
            f"{what} has a config that taming's {kind} does not take: {error}."
        ) from error
    if channels != (3, 3):
        raise ClipagError(f"{what} is not a VQGAN of RGB pictures.")
    return model


def _check_sizes(sizes: Mapping[str, Any], what: str) -> None:
    """Raise ClipagError if a number of a config is beyond the limits."""
    for key, value in sizes.items():
        limit = DEEPEST if key == "num_res_blocks" else LARGEST
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > DEEPEST or not all(0 <= float(number) <= limit for number in numbers):
            # The message leaves out the value: aliases in a yaml can make its text of any length.
            raise ClipagError(f"{what} has an impossible setting: {key}.")
