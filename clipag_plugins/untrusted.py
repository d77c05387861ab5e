"""Read state dicts from files that nobody vouches for, without running any code in them."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .errors import ClipagError

# The code of a TorchScript archive is compressed, its tensors are not.
COMPRESSED = 64 * 2**20
# Packages whose objects (callbacks, options, scores) stand beside the weights in checkpoints that
# Lightning wrote. None of them is imported or called.
TRAINERS = ("argparse", "lightning", "main", "numpy", "omegaconf", "pytorch_lightning", "taming")
BOMB = "would unpack to many times its size: it is no checkpoint."


def read(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file, a torch state dict or a TorchScript archive.

    Raises:
        ClipagError: the file is damaged, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = _read_safetensors(path)
        elif _is_torchscript(path):
            state = _read_torchscript(path)
        else:
            state = _read_torch(path)
    except ClipagError:
        raise
    except Exception as error:  # the readers raise anything on bytes that are no weights
        raise ClipagError(
            f"{path} is not a whole .safetensors, torch state dict or TorchScript archive "
            "of tensors: fetch it again."
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(k, str) and _is_dense(v) for k, v in state.items())
    ):
        raise ClipagError(f"{path} holds something other than a state dict of tensors.")
    # A tensor may claim any shape over a single number, by strides of 0.
    if sum(v.numel() * v.element_size() for v in state.values()) > 2 * path.stat().st_size + 2**20:
        raise ClipagError(f"{path} {BOMB}")
    # Kept as it came: torch's state dicts carry metadata beside their tensors.
    return state  # type: ignore[return-value]


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and value.dtype in STORAGES.values()
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    state: Any = OrderedDict(load_file(path))
    with safe_open(path, "pt") as file:
        activation = (file.metadata() or {}).get("quick_gelu")
    if activation is not None:
        # Where torch's own state dicts keep what is no tensor.
        state._metadata = {"": {"quick_gelu": activation == "true"}}
    return state  # type: ignore[no-any-return]


def _read_torch(path: Path) -> Any:
    """Read what torch.save wrote; what a training framework put beside the tensors stays empty."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        serialization: Any = torch.serialization
        names = serialization.get_unsafe_globals_in_checkpoint(path)
        if not names or any(name.split(".")[0] not in TRAINERS for name in names):
            raise
        with serialization.safe_globals([(inert(name), name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)


def inert(name: str) -> type:
    """Make a class that takes the place of `name` in a checkpoint, and that does nothing."""

    def nothing(self: Any, *_: Any, **__: Any) -> None:
        return None

    methods = dict.fromkeys(("__init__", "__setstate__", "append", "__setitem__"), nothing)
    return type(name.rpartition(".")[2], (), methods)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        if sum(e.file_size for e in archive.infolist()) > path.stat().st_size + COMPRESSED:
            raise ClipagError(f"{path} {BOMB}")
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive (OpenAI's own files are such) and no code."""
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(pickled) as file:
            root = _TensorsOnly(file, archive, pickled.removesuffix("data.pkl")).load()
    state: dict[str, Tensor] = {}
    _collect(root, "", state)
    return state


def _collect(module: "_Module", prefix: str, state: dict[str, Tensor]) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            state[prefix + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", state)


class _Module:
    """Stands for every class of a TorchScript archive: its attributes, not its code."""


class _TensorsOnly(pickle.Unpickler):
    """Unpickles tensors and containers; anything else that is named raises."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self.archive = archive
        self.folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """Return the harmless stand-in for a name."""
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":
            return _first
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")

    def persistent_load(self, identity: Any) -> Tensor:
        """Return a storage of the archive as a flat tensor."""
        _, dtype, key, _, _ = identity
        return torch.frombuffer(
            bytearray(self.archive.read(f"{self.folder}data/{key}")), dtype=dtype
        )


STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}


def _tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value
