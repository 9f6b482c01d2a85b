"""One batch on several threads: each runs its rows forward, and later backward, on a core of its own."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kswapctl.models.weights import Weights
from kswapctl.runtime import cores, spread

LEAST = 4
"""Fewest rows that are worth a thread."""

Run = Callable[[nn.Module, Weights, Tensor], Tensor]
"""From a module, the weights it is to use in place of its own, and B rows, to B rows."""

_twins: weakref.WeakKeyDictionary[nn.Module, list[nn.Module]] = weakref.WeakKeyDictionary()


def run_spread(run: Run, module: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
    """``run(module, weights, inputs)``; gradients flow to ``weights`` alone.

    On a CPU with several threads the rows of ``inputs`` are divided among them; else they run together. ``run`` is
    called in other threads, each with a copy of ``module`` that shares its tensors.
    """
    threads = min(cores(), len(inputs) // LEAST) if inputs.device.type == "cpu" else 1
    if threads < 2:
        return run(module, weights, inputs)
    parts = list(zip(_alike(module, threads), inputs.tensor_split(threads), strict=True))
    if torch.is_grad_enabled() and any(w.requires_grad for w in weights.values()):
        joined: Tensor = _Spread.apply(run, parts, list(weights), *weights.values())
        return joined

    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

    def forward(pair: tuple[nn.Module, Tensor]) -> Tensor:
        with mode():
            return run(pair[0], weights, pair[1])

    return torch.cat(spread(forward, parts))


def _alike(module: nn.Module, count: int) -> list[nn.Module]:
    """``module`` and copies of it that share its tensors: putting other weights in place is not safe across threads."""
    twins = _twins.setdefault(module, [])
    while len(twins) < count - 1:
        shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
        twins.append(copy.deepcopy(module, shared))
    return [module, *twins[: count - 1]]


class _Spread(torch.autograd.Function):
    """Each part keeps a graph of its own, over its own leaves, so that all can be walked back at once."""

    @staticmethod
    def forward(ctx: Any, run: Run, parts: list[tuple[nn.Module, Tensor]], names: list[str], *values: Tensor) -> Tensor:
        """Returns the joined outputs of the parts."""
        needed = ctx.needs_input_grad[3:]

        @torch.enable_grad()
        def part(pair: tuple[nn.Module, Tensor]) -> tuple[list[Tensor], Tensor]:
            leaves = [value.detach().requires_grad_(asked) for value, asked in zip(values, needed, strict=True)]
            return leaves, run(pair[0], dict(zip(names, leaves, strict=True)), pair[1])

        ctx.kept = spread(part, parts)
        return torch.cat([outputs.detach() for _, outputs in ctx.kept])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Sums over the parts, in their order: the same bits every time."""
        kept = ctx.kept
        rows = gradient.split([len(outputs) for _, outputs in kept])

        def back(item: tuple[tuple[list[Tensor], Tensor], Tensor]) -> list[Tensor | None]:
            (leaves, outputs), wanted = item
            moved = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(outputs, moved, wanted, allow_unused=True))
            return [next(found) if leaf.requires_grad else None for leaf in leaves]

        sums: list[Tensor | None] = [None] * len(kept[0][0])
        for gradients in spread(back, list(zip(kept, rows, strict=True))):
            for index, value in enumerate(gradients):
                before = sums[index]
                sums[index] = value if before is None else before if value is None else before + value
        return None, None, None, *sums
