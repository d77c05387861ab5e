"""Functions that torch has removed, and calls that its tensors no longer take."""

from collections import namedtuple
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from clipag_plugins.integrations.shims.patching import Patches

SolveResult = namedtuple("SolveResult", "solution LU")
EigResult = namedtuple("EigResult", "eigenvalues eigenvectors")
LstsqResult = namedtuple("LstsqResult", "solution QR")


def patch(patches: Patches, torch: ModuleType) -> None:
    """Restore them in the module `torch`."""
    for name, function in REMOVED_FUNCTIONS.items():
        # torch 2 has kept some of the names, for functions that only raise an error.
        replacement = _report_call(patches, f"torch.{name} was removed", function)
        patches.set(torch, name, replacement)
        if name in METHODS:
            patches.set(torch.Tensor, name, replacement)
    for name in ("clamp_", "clip_", "clamp_min_", "clamp_max_"):
        method = getattr(torch.Tensor, name)
        patches.set(torch.Tensor, name, _clamp_integers(patches, name, method))


def _report_call(patches: Patches, text: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        patches.report(f"{text}: using our replacement")
        return function(*arguments, **options)

    return call


def _solve(input: Any, A: Any) -> Any:
    import torch

    return SolveResult(torch.linalg.solve(A, input), torch.linalg.lu_factor(A)[0])


def _symeig(input: Any, eigenvectors: bool = False, upper: bool = True) -> Any:
    import torch

    triangle = "U" if upper else "L"
    if eigenvectors:
        return EigResult(*torch.linalg.eigh(input, UPLO=triangle))
    return EigResult(torch.linalg.eigvalsh(input, UPLO=triangle), input.new_empty(0))


def _lstsq(input: Any, A: Any) -> Any:
    import torch

    return LstsqResult(torch.linalg.lstsq(A, input).solution, torch.linalg.qr(A)[1])


def _matrix_rank(input: Any, tol: Any = None, symmetric: bool = False) -> Any:
    import torch

    options = {} if tol is None else {"tol": tol}
    return torch.linalg.matrix_rank(input, hermitian=symmetric, **options)


def _rfft(input: Any, signal_ndim: int, normalized: bool = False, onesided: bool = True) -> Any:
    import torch

    dims = tuple(range(-signal_ndim, 0))
    transform = torch.fft.rfftn if onesided else torch.fft.fftn
    norm = "ortho" if normalized else "backward"
    return torch.view_as_real(transform(input, dim=dims, norm=norm))


def _irfft(
    input: Any,
    signal_ndim: int,
    normalized: bool = False,
    onesided: bool = True,
    signal_sizes: Any = None,
) -> Any:
    import torch

    dims = tuple(range(-signal_ndim, 0))
    norm = "ortho" if normalized else "backward"
    spectrum = torch.view_as_complex(input.contiguous())
    if onesided:
        return torch.fft.irfftn(spectrum, s=signal_sizes, dim=dims, norm=norm)
    return torch.fft.ifftn(spectrum, s=signal_sizes, dim=dims, norm=norm).real


REMOVED_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "solve": _solve,
    "symeig": _symeig,
    "lstsq": _lstsq,
    "matrix_rank": _matrix_rank,
    "rfft": _rfft,
    "irfft": _irfft,
}
METHODS = ("solve", "symeig", "lstsq")


def _clamp_integers(patches: Patches, name: str, method: Any) -> Any:
    """Let a tensor of integers be clamped in place by floats, which lose their fraction."""

    @wraps(method)
    def clamp(self: Any, *arguments: Any, **options: Any) -> Any:
        bounds = (*arguments, *options.values())
        if not self.is_floating_point() and any(isinstance(bound, float) for bound in bounds):
            patches.report(f"{name} of integers no longer takes floats: dropping their fraction")
            arguments = tuple(map(_to_integer, arguments))
            options = {key: _to_integer(bound) for key, bound in options.items()}
        return method(self, *arguments, **options)

    return clamp


def _to_integer(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) else bound
