"""Where VQGANs come from: a yaml and a checkpoint, a folder, the Hub, a public address.

Nothing that a yaml names is imported and nothing that a checkpoint pickles is run: of the one only
the shape is taken, of the other only the tensors.
"""

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from clipag_plugins import architecture, download, embedded, hub, untrusted
from clipag_plugins.errors import ClipagError
from clipag_plugins.files import write_beside
from clipag_plugins.integrations.vqgan.taming import taming

EMBEDDED = "vqgan-mini"


@dataclass(frozen=True)
class Address:
    """Where a public checkpoint is: its yaml, its weights, and their size in MB (0: not known)."""

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
# As VQGAN+CLIP's scripts have them (nerdyrodent/VQGAN-CLIP's download_models.sh, pixray).
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
# What taming's folders and repositories call these files; ours come first.
OURS = ("config.yaml", "model.safetensors")
CONFIGS = ("config.yaml", "model.yaml", "configs/model.yaml")
WEIGHTS = (
    "model.safetensors", "model.ckpt", "last.ckpt", "ckpts/last.ckpt", "checkpoints/last.ckpt",
)  # fmt: skip

# What of a checkpoint draws. The rest trained it, or continues codes in a transformer.
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
SHAPE = {
    "ch", "out_ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "in_channels",
    "resolution", "z_channels", "resamp_with_conv",
}  # fmt: skip
# Far beyond any VQGAN: a config that asks for more asks for all memory there is.
LARGEST, DEEPEST = 1_000_000, 16


def load_vqgan(name: str | Path = EMBEDDED, config: str | Path | None = None) -> nn.Module:
    """Load a VQGAN as taming's own `VQModel` or `GumbelVQ`, frozen, on the CPU.

    The embedded one has a `name`, so that `vqgan.settings_for` knows it.

    Args:
        name: "vqgan-mini", a name of `VQGANS`, a checkpoint file, a folder, or a repository of
            the Hub as "owner/name" with taming's yaml and checkpoint in it.
        config: the yaml of a checkpoint file; by default the one beside it of the same name.

    Raises:
        ClipagError: there is none, it cannot be had, it is damaged, or yaml and checkpoint are
            of different models.
    """
    known, path = str(name), Path(name).expanduser()
    if config is not None and not path.is_file():
        raise ClipagError(f"There is no checkpoint {known} for the config {config}.")
    if known == EMBEDDED:
        entry = embedded.read_config()["vqgan"]
        model = _build(entry["model_cfg"], embedded.checked_path(entry["weights"]), EMBEDDED)
        vars(model)["name"] = EMBEDDED
        return model
    if known in VQGANS:
        return read_vqgan(*_files(pull_vqgan(known)))
    if path.is_file():
        return read_vqgan(path.with_suffix(".yaml") if config is None else Path(config), path)
    is_file = path.suffix in (*hub.FILES, ".ckpt")  # by its name, though there is none
    if path.is_dir() or (re.fullmatch(hub.REPOSITORY, known) and not is_file):
        return read_vqgan(*_files(known))
    raise ClipagError(
        f"There is no VQGAN called {known!r}: name a checkpoint, a folder, or one of "
        f"{', '.join((EMBEDDED, *VQGANS))}."
    )


def pull_vqgan(name: str) -> Path:
    """Fetch a VQGAN of `VQGANS`, and return the folder that it is in, as config and safetensors.

    Raises:
        ClipagError: it cannot be had, or is not what it should be.
    """
    address, folder = VQGANS[name], _folder(name)
    weights = folder / OURS[1]
    if not weights.is_file():
        config = download.web_file(address.config, folder / OURS[0])
        fetched = download.web_file(address.weights, folder / "last.ckpt")
        model = read_vqgan(config, fetched)
        with write_beside(weights) as temporary:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary)
        fetched.unlink()  # most of it is the optimiser's, the loss' and the transformer's
    return folder


def is_cached(name: str) -> bool:
    """Say whether a VQGAN of `VQGANS` works without a download."""
    return (_folder(name) / OURS[1]).is_file()


def _folder(name: str) -> Path:
    return download.cache_folder() / "vqgan" / name


def write_embedded(path: Path) -> None:
    """Write the embedded VQGAN as scripts want theirs: `path`, a .ckpt, and a .yaml beside it."""
    params = embedded.read_config()["vqgan"]["model_cfg"]["params"]
    loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
    config = {"target": "taming.models.vqgan.VQModel", "params": {**params, "lossconfig": loss}}
    with write_beside(path) as temporary:
        torch.save({"state_dict": load_vqgan().state_dict()}, temporary)
    with write_beside(path.with_suffix(".yaml")) as temporary:
        temporary.write_text(yaml.safe_dump({"model": config}), encoding="utf-8")


def _files(place: str | Path) -> tuple[Path, Path]:
    """Return the yaml and the weights of a folder or a Hub repository."""
    folder = Path(place).expanduser()
    fetch: Callable[[str], Path | None]
    if folder.is_dir():

        def fetch(filename: str) -> Path | None:
            return folder / filename if (folder / filename).is_file() else None
    else:

        def fetch(filename: str) -> Path | None:
            remedy = (
                f"put its yaml and its checkpoint into a folder and name that; {EMBEDDED} works now"
            )
            return download.hub_file(str(place), filename, remedy=remedy)

    config = next((file for name in CONFIGS if (file := fetch(name))), None)
    weights = next((file for name in WEIGHTS if (file := fetch(name))), None)
    if config is None or weights is None:
        wanted = CONFIGS if config is None else WEIGHTS
        raise ClipagError(f"{place} is no VQGAN of taming's: it has none of {', '.join(wanted)}.")
    return config, weights


def read_vqgan(config: Path, weights: Path) -> nn.Module:
    """Load a VQGAN from a yaml of taming's and a checkpoint.

    The transformer of a checkpoint that continues codes (`Net2NetTransformer`) is left out.

    Raises:
        ClipagError: a file is missing, damaged or hostile, or they are of different models.
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
        # A transformer's own config holds that of the VQGAN whose codes it continues.
        model = model["params"].get("first_stage_config", model)
    if not isinstance(model, dict):
        raise ClipagError(f"{config} describes no model: it has no model.target and model.params.")
    return _build(model, weights, f"{weights}, which {config} describes,")


def _build(config: Mapping[str, Any], weights: Path, what: str) -> nn.Module:
    """Build a model in taming's config format, {target, params}, and fill it from a file."""
    kind = str(config.get("target")).rpartition(".")[2]
    if kind not in ("VQModel", "GumbelVQ"):
        raise ClipagError(f"{what} is a {kind}: a VQModel or a GumbelVQ draws here.")
    empty = _empty(kind, config.get("params"), what)
    read = {k.removeprefix("first_stage_model."): v for k, v in untrusted.read(weights).items()}
    state: dict[str, Tensor] = {k: v for k, v in read.items() if k.startswith(PARTS)}
    if not state:
        raise ClipagError(f"{weights} holds no VQGAN: none of its tensors is a decoder's.")
    architecture.load_weights(empty, state, what)
    return empty.eval().requires_grad_(False)


def _empty(kind: str, params: Any, what: str) -> nn.Module:
    """Build taming's model with shapes but no memory, and without its loss."""
    models = taming("models.vqgan")
    unused = {"target": "torch.nn.Identity"}  # losses and schedules are for training
    try:
        described = {k: v for k, v in params["ddconfig"].items() if k in SHAPE}
        sizes = {"n_embed": params["n_embed"], "embed_dim": params["embed_dim"]}
        for key, value in {**described, **sizes}.items():
            most = DEEPEST if key == "num_res_blocks" else LARGEST
            several = value if isinstance(value, list) else [value]
            if len(several) > DEEPEST or not all(0 <= float(number) <= most for number in several):
                # Without the value: a yaml's aliases may make its text of any length.
                raise ClipagError(f"{what} has an impossible setting: {key}.")
        # taming tells standard output of every decoder that it makes.
        with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
            shape = {"ddconfig": {**described, "double_z": False}, "lossconfig": unused, **sizes}
            if kind == "GumbelVQ":
                shape["temperature_scheduler_config"] = unused
            model: nn.Module = getattr(models, kind)(**shape)
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        if isinstance(error, ClipagError):
            raise
        raise ClipagError(
            f"{what} has a config that taming's {kind} does not take: {error}."
        ) from error
    if described["in_channels"] != 3 or described["out_ch"] != 3:
        raise ClipagError(f"{what} is not a VQGAN of RGB pictures.")
    return model
