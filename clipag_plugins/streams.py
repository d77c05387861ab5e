"""Random numbers that belong to a seed, whatever else draws random numbers at the same time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

OpenStream = Callable[[int | None], AbstractContextManager[object]]

# Torch's random functions that take a generator, and the methods, since kornia and
# `torch.nn.init` call either.
RANDOM_FUNCTIONS = {
    torch.bernoulli,
    torch.multinomial,
    torch.normal,
    torch.poisson,
    torch.rand,
    torch.randint,
    torch.randn,
    torch.randperm,
    torch._sample_dirichlet,
    torch._standard_gamma,
    Tensor.bernoulli,
    Tensor.bernoulli_,
    Tensor.cauchy_,
    Tensor.exponential_,
    Tensor.geometric_,
    Tensor.log_normal_,
    Tensor.multinomial,
    Tensor.normal_,
    Tensor.random_,
    Tensor.uniform_,
}


class draw_from(TorchFunctionMode):
    """Within the block, in this thread, torch's random numbers come from `generator`.

    kornia and `torch.nn.init` draw from torch's global generator, which all threads share. This
    passes them another one, so that threads and other code cannot disturb each other, and the
    global generator is not touched. It covers CPU tensors; kornia draws on the CPU.
    """

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # The functions of torch.nn.init are passed on with all their arguments named.
        takes_generator = function in RANDOM_FUNCTIONS or "generator" in kwargs
        if takes_generator and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self.generator}
        return function(*args, **kwargs)


class draw_nothing(TorchFunctionMode):
    """Within the block, modules draw no random weights: they are about to be replaced.

    Their memory stays as it was, and its pages untouched. On the meta device, the first weight that
    is drawn imports torch's compiler, which takes longer than torch itself.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_initializer = getattr(function, "__module__", None) == nn.init.__name__
        if is_initializer or function in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


class RandomStreams:
    """One stream of random numbers for each seed.

    Args:
        seeds: where the streams start. The seed None stands for torch's global generator.
    """

    def __init__(self, seeds: Sequence[int]):
        self._states: dict[int, Tensor] = {
            seed: torch.Generator().manual_seed(seed).get_state() for seed in seeds
        }

    def step(self) -> OpenStream:
        """Return what opens a seed's stream; within one step a stream always starts the same.

        In the next step, each stream goes on where its last use ended.
        """
        before = dict(self._states)
        global_before = torch.get_rng_state()

        @contextmanager
        def open_stream(seed: int | None) -> Iterator[None]:
            if seed is None:
                torch.set_rng_state(global_before)
                yield
                return
            generator = torch.Generator()
            generator.set_state(before[seed])
            with draw_from(generator):
                yield
            self._states[seed] = generator.get_state()

        return open_stream
