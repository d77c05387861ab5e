"""Steps that a GPU repeats without Python: CUDA graphs of whole updates."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Repeated:
    """A step that is recorded as a CUDA graph and replayed; elsewhere it is called.

    A trunk's passes are hundreds of short kernels: the GPU would wait for Python most of the time.

    Args:
        step: works in place, on tensors that stay where they are.
        generator: its source of randomness.
    """

    WARM_UP = 3

    def __init__(self, step: Callable[[], None], generator: torch.Generator):
        self.step, self.generator = step, generator
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do the step once."""
        if self.generator.device.type != "cuda":
            self.step()
        elif self.calls < self.WARM_UP:
            self.calls += 1
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.step()
            torch.cuda.current_stream().wait_stream(stream)
        else:
            if self.graph is None:
                self.graph = self._record()
            self.graph.replay()

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            self.step()
        return graph


def assign_gradients(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    """Set the parameters' gradients. A CUDA graph cannot record `loss.backward()` safely."""
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
