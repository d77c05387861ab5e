"""Read state dicts from untrusted files without running any code that they contain."""

import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .errors import ClipagError

# A TorchScript archive compresses its code, not its tensors: bytes that the code may unpack to.
LARGEST_CODE = 64 * 2**20
MOST_NESTED = 50  # modules inside one another
# Names under which training code keeps the weights, the most usual first.
CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "module", "net", "clip")
MOST_CONTAINERS = 5  # inside one another
# Checkpoints hold objects of these packages (options, paths, callbacks, scores) beside the weights.
# None of the packages is imported or called.
TRAINERS = (
    "addict", "argparse", "easydict", "lightning", "main", "ml_collections", "numpy", "omegaconf",
    "pathlib", "pytorch_lightning", "taming", "yacs",
)  # fmt: skip
# What pickle, zipfile, torch and safetensors raise on damaged or hostile bytes.
READER_ERRORS = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, SafetensorError,
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError,
    LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
BOMB = "would unpack to many times its size: it is no checkpoint."


def read(path: Path) -> Mapping[str, Tensor]:
    """Read a `.safetensors` file, a torch state dict or a TorchScript archive.

    A state dict may be inside dicts, as in the checkpoints of training code.

    Returns:
        The state dict, with torch's `_metadata` if the file has it. `.safetensors` files of this
        package record there whether they need QuickGELU.

    Raises:
        ClipagError: the file is missing or damaged, or holds something other than tensors.
    """
    if not path.is_file():
        raise ClipagError(f"There is no file {path}: check the path.")
    if _is_safetensors(path):
        content: Any = _read_safetensors(path)
    elif _is_torchscript(path):
        content = _read_torchscript(path)
    else:
        content = _read_torch(path)
    state = _state_dict_in(content, MOST_CONTAINERS, set())
    if state is None:
        raise ClipagError(f"{path} holds something other than a state dict of tensors.")
    # With strides of 0, a tensor of any shape needs the memory of a single number.
    if sum(v.numel() * v.element_size() for v in state.values()) > 2 * path.stat().st_size + 2**20:
        raise ClipagError(f"{path} {BOMB}")
    return state


def _state_dict_in(value: Any, containers: int, visited: set[int]) -> Mapping[str, Tensor] | None:
    """Return the state dict inside nested dicts; None if there is none, or no obvious one.

    Args:
        value: what a checkpoint holds.
        containers: how many dicts may be around the state dict.
        visited: dicts that were searched: a hostile file's may contain each other.
    """
    if not isinstance(value, Mapping) or not value or id(value) in visited:
        return None
    visited.add(id(value))
    if not all(isinstance(key, str) for key in value):  # an optimizer's, by number
        return None
    if all(_is_dense(tensor) for tensor in value.values()):
        return value
    if containers == 0:
        return None
    for name in CONTAINERS:
        state = _state_dict_in(value.get(name), containers - 1, visited)
        if state is not None:
            return state
    states = [_state_dict_in(inner, containers - 1, visited) for inner in value.values()]
    candidates = [state for state in states if state is not None]
    return candidates[0] if len(candidates) == 1 else None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises on bytes that are no weights into a ClipagError.

    The block may call only readers of other libraries, and what they call back.
    """
    try:
        yield
    except READER_ERRORS as error:
        raise ClipagError(
            f"{path} is not a complete .safetensors file, torch state dict or TorchScript archive "
            "of tensors: fetch it again."
        ) from error


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and value.dtype in STORAGES.values()
    )


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is `.safetensors` by its name or by its first bytes."""
    with _reading(path), path.open("rb") as file:
        length, opening = int.from_bytes(file.read(8), "little"), file.read(1)
    return path.suffix == ".safetensors" or (opening == b"{" and length < path.stat().st_size)


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    with _reading(path), safe_open(path, "pt") as file:
        activation = (file.metadata() or {}).get("quick_gelu")
        state: Any = OrderedDict(load_file(path))
    if activation is not None:
        # torch's own state dicts keep their metadata in this attribute.
        state._metadata = {"": {"quick_gelu": activation == "true"}}
    return state  # type: ignore[no-any-return]


def _read_torch(path: Path) -> Any:
    """Read a file of torch.save; objects that a training framework added become empty.

    Raises:
        ClipagError: it cannot be read, or holds other objects.
    """
    with _reading(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            serialization: Any = torch.serialization
            refused = re.search(r"GLOBAL ([\w.]+)", str(error))
            names = [] if refused is None else [refused[1]]
            if zipfile.is_zipfile(path):
                names = sorted(serialization.get_unsafe_globals_in_checkpoint(path))
            foreign = [name for name in names if name.split(".")[0] not in TRAINERS]
            if foreign:
                raise ClipagError(
                    f"{path} holds Python objects ({foreign[0]}), which could run code: save the "
                    "tensors alone, as torch.save(model.state_dict(), …) does."
                ) from error
            if not names:
                raise
            with serialization.safe_globals([(empty_class(name), name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True)


def empty_class(name: str) -> type:
    """Make a class that replaces `name` while a checkpoint is read, and that does nothing."""

    def do_nothing(self: Any, *_: Any, **__: Any) -> None:
        return None

    methods = dict.fromkeys(("__init__", "__setstate__", "append", "__setitem__"), do_nothing)
    return type(name.rpartition(".")[2], (), methods)


def _is_torchscript(path: Path) -> bool:
    with _reading(path):
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > path.stat().st_size + LARGEST_CODE:
        raise ClipagError(f"{path} {BOMB}")
    return any(entry.filename.endswith("/constants.pkl") for entry in entries)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive, the format of OpenAI's files, and no code."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(pickled) as file:
            root = _TensorsOnly(file, archive, pickled.removesuffix("data.pkl")).load()
    state: dict[str, Tensor] = {}
    if isinstance(root, _Module):
        _collect(root, (), state, set())
    return state


def _collect(
    module: "_Module", parents: tuple[str, ...], state: dict[str, Tensor], visited: set[int]
) -> None:
    """Add the tensors of a module, and of the modules in it, to a state dict.

    Modules that are met again or nested too deeply are ignored: a hostile file's may contain each
    other.
    """
    if id(module) in visited or len(parents) > MOST_NESTED:
        return
    visited.add(id(module))
    for name, value in vars(module).items():
        names = (*parents, str(name))
        if isinstance(value, Tensor):
            state[".".join(names)] = value
        elif isinstance(value, _Module):
            _collect(value, names, state, visited)


class _Module:
    """Replaces every class of a TorchScript archive. It has the attributes, not the code."""


class _TensorsOnly(pickle.Unpickler):
    """Unpickles tensors and containers; refuses every other name."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self.archive = archive
        self.folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """Return a harmless replacement for a name.

        Raises:
            pickle.UnpicklingError: the name is not needed for tensors.
        """
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":
            return _first_argument
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")

    def persistent_load(self, identity: Any) -> Tensor:
        """Return a storage of the archive as a one-dimensional tensor."""
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


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first_argument(value: Any, *_: Any) -> Any:
    return value
