"""Random numbers that belong to a seed, whatever else is drawn beside it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

OpenStream = Callable[[int | None], AbstractContextManager[None]]


class RandomStreams:
    """One stream of torch's random numbers for each seed.

    kornia draws from torch's global generator alone. So a stream is a state of that generator,
    which is put in place while views are made. The seed None stands for the global generator
    itself.

    Args:
        seeds: where the streams start.
    """

    def __init__(self, seeds: Sequence[int]):
        self._states: dict[int | None, Tensor] = {
            seed: torch.Generator().manual_seed(seed).get_state() for seed in seeds
        }

    @contextmanager
    def step(self) -> Iterator[OpenStream]:
        """Yield what opens a seed's stream; within one step a stream always starts the same.

        After the step, each stream goes on where its last use ended, and so does the global
        generator if the seed None was used.
        """
        before: dict[int | None, Tensor] = {**self._states, None: torch.get_rng_state()}

        @contextmanager
        def open_stream(seed: int | None) -> Iterator[None]:
            torch.set_rng_state(before[seed])
            yield
            self._states[seed] = torch.get_rng_state()

        global_state = before[None]
        try:
            yield open_stream
            global_state = self._states.pop(None, global_state)
        finally:
            torch.set_rng_state(global_state)
