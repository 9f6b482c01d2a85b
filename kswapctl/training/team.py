"""Several processes on one operation: each runs its share of a batch, and all end with the same gradient.

Started by torchrun; accelerate sets the processes up. What is random is drawn alike in every process, and only the
network's run over images is divided: the loss is computed in each process over the features of the whole batch, so that
it is the loss of one process, whatever the method makes of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kswapctl.errors import TeamError


@dataclass(frozen=True)
class Team:
    """The processes of one operation; alone, everything here hands back what it was given."""

    rank: int = 0
    """This process, from 0; the first one alone writes."""
    size: int = 1

    def share(self, count: int) -> slice:
        """The part of ``count`` things that is this process's: consecutive, sizes differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def join(self, part: Tensor, count: int) -> Tensor:
        """The (count, ...) rows of which each process holds its share, in order, in every process.

        The gradient flows back to this process's own rows, times the number of processes: averaged over them by
        :meth:`average`, gradients are those of one process.
        """
        if self.size == 1:
            return part
        joined: Tensor = _Join.apply(part, self, count)
        return joined

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the mean of the gradients."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        with _together():
            dist.all_reduce(flat)
        for gradient, mean in zip(gradients, (flat / self.size).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def wait(self) -> None:
        """Return once every process is here; one that has died ends all the others here."""
        if self.size > 1:
            with _together():
                dist.barrier()


ALONE = Team()
"""One process."""


class _Join(torch.autograd.Function):
    """Gather rows from all processes; hand the gradient of this process's own rows back."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, team: Team, count: int) -> Tensor:
        """Rows are padded to the largest share: gloo gathers equal shapes only."""
        ctx.team, ctx.count = team, count
        sizes = [(s := Team(rank, team.size).share(count)).stop - s.start for rank in range(team.size)]
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        with _together():
            dist.all_gather(parts, padded)
        return torch.cat([p[:size] for p, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The rows of ``gradient`` that are this process's, times the number of processes."""
        return gradient[ctx.team.share(ctx.count)] * ctx.team.size, None, None


@contextmanager
def _together() -> Iterator[None]:
    """Inside, processes talk; where one has gone, the others are told instead of shown a traceback."""
    try:
        yield
    except RuntimeError as error:
        raise TeamError(
            "another process of this operation has ended; nothing was registered",
            "see its own message, then start again",
        ) from error


def is_team() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_follower() -> bool:
    """Whether this process trains along and writes nothing."""
    return is_team() and os.environ.get("RANK", "0") != "0"


def gather_team(cpu: bool) -> Team:
    """Meet the other processes, if torchrun started any; ``cpu`` even where there is a GPU."""
    if not is_team():
        return ALONE
    from accelerate import PartialState

    with _together():
        state = PartialState(cpu=cpu)
    return Team(state.process_index, state.num_processes)
