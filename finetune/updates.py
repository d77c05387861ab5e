"""The training loop of the small networks behind a CLIP: priors, and the decoder of embeddings."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from clipag_plugins.finetune import checkpoint, processes

BETAS = (0.9, 0.96)
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How a small network is updated.

    Attributes:
        steps: updates.
        rate: peak learning rate, after a warm-up of a tenth of the steps, which then falls to 0.
        decay: weight decay.
        average: decay of the weights' moving average, which is the result.
        save_every: updates between checkpoints.
    """

    steps: int
    rate: float
    decay: float
    average: float
    save_every: int

    def rate_of(self, step: int) -> float:
        """Return the learning rate of an update: a linear warm-up, then a linear fall."""
        warm = max(1, self.steps // 10)
        return self.rate * min((step + 1) / warm, (self.steps - step) / max(1, self.steps - warm))


def run(
    network: Network,
    loss_of: Callable[[int], Tensor],
    schedule: Schedule,
    identity: Mapping[str, Any],
    out: Path,
) -> Network:
    """Train a network, and return the moving average of its weights.

    Args:
        network: on the device to compute on.
        loss_of: returns the loss of an update on this process's share of the batch.
        schedule: updates, rates and checkpoints.
        identity: plain values that a resumed run must share with its checkpoint.
        out: folder of the run, which is made if it is missing. A run in it is resumed.

    Raises:
        ClipagError: the folder holds another run.
        KeyboardInterrupt: SIGTERM or Ctrl-C came, and a checkpoint was saved after the current
            update; the argument is the signal's number.
    """
    averaged = checkpoint.Averaged(network, schedule.average)
    optimizer = torch.optim.AdamW(
        network.parameters(), schedule.rate, betas=BETAS, weight_decay=schedule.decay
    )
    parts: dict[str, Any] = {
        "recipe": checkpoint.Recipe(json.loads(json.dumps(identity))),
        "prior": network,
        "average": averaged,
        "optimizer": optimizer,
    }
    start = checkpoint.restore_last(out, parts)
    out.mkdir(parents=True, exist_ok=True)
    with processes.noted_signals() as signals:
        for step in checkpoint.progress(start, schedule.steps, out.name):
            optimizer.zero_grad()
            loss_of(step).backward()
            _share_gradients(network)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_of(step)
            optimizer.step()
            averaged.update(network, step)
            done = step + 1
            interrupts = [number for each in processes.gather(signals) for number in each]
            if done % schedule.save_every == 0 or done == schedule.steps or interrupts:
                checkpoint.save_in(out, done, parts, 2)
            if interrupts:
                processes.wait()
                raise KeyboardInterrupt(interrupts[0])
    return cast(Network, averaged.tower)  # a copy of the network


def batch_of(count: int, batch: int, seed: int, step: int) -> tuple[Tensor, torch.Generator]:
    """Draw the samples of an update.

    Args:
        count: of all samples.
        batch: samples of an update, of all processes together.
        seed: of the run.
        step: number of the update.

    Returns:
        This process's share of the samples' numbers, and what it draws its random numbers from.
    """
    everyone = torch.Generator().manual_seed(seed * 1_000_003 + step)
    numbers = torch.randint(count, (batch,), generator=everyone)
    process = processes.rank() + 1
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step + process * 2**40)
    return numbers[processes.rank() :: processes.count()], generator


def _share_gradients(network: nn.Module) -> None:
    """Replace each process's gradients by their mean."""
    if processes.count() == 1:
        return
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    mean = processes.total(torch.cat([each.flatten() for each in gradients])) / processes.count()
    for gradient, part in zip(
        gradients, mean.split([each.numel() for each in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))
