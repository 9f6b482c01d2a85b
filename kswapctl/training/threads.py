"""One batch on several threads: each runs its rows forward, and later backward, on a core of its own."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kswapctl.models.weights import Weights
from kswapctl.runtime import cores, spread

LEAST = 4
"""Fewest rows that are worth a thread."""

Around = Callable[[], AbstractContextManager[Any]]

_twins: weakref.WeakKeyDictionary[nn.Module, list[nn.Module]] = weakref.WeakKeyDictionary()


def run_spread(module: nn.Module, weights: Weights, inputs: Tensor, around: Around) -> Tensor:
    """``module(inputs)`` with ``weights`` in place of its own, inside ``around()``; gradients flow to them alone.

    On a CPU with several threads the rows of ``inputs`` are divided among them; else they run together.
    """
    threads = min(cores(), len(inputs) // LEAST) if inputs.device.type == "cpu" else 1
    if threads < 2:
        with around():
            outputs: Tensor = functional_call(module, weights, (inputs,))
        return outputs
    parts = list(zip(_alike(module, threads), inputs.tensor_split(threads), strict=True))
    if not torch.is_grad_enabled():
        return torch.cat(spread(lambda pair: _run(*pair, weights, around, grad=False), parts))
    joined: Tensor = _Spread.apply(parts, list(weights), around, *weights.values())
    return joined


def _alike(module: nn.Module, count: int) -> list[nn.Module]:
    """``module`` and copies of it that share its tensors: putting other weights in place is not safe across threads."""
    twins = _twins.setdefault(module, [])
    while len(twins) < count - 1:
        shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
        twins.append(copy.deepcopy(module, shared))
    return [module, *twins[: count - 1]]


def _run(module: nn.Module, inputs: Tensor, weights: Weights, around: Around, *, grad: bool) -> Tensor:
    with torch.set_grad_enabled(grad), around():
        outputs: Tensor = functional_call(module, weights, (inputs,))
    return outputs


class _Spread(torch.autograd.Function):
    """Each part keeps a graph of its own, over its own leaves, so that all can be walked back at once."""

    @staticmethod
    def forward(
        ctx: Any, parts: list[tuple[nn.Module, Tensor]], names: list[str], around: Around, *values: Tensor
    ) -> Tensor:
        """Returns the joined outputs of the parts."""

        def run(pair: tuple[nn.Module, Tensor]) -> tuple[list[Tensor], Tensor]:
            leaves = [
                value.detach().requires_grad_(needed)
                for value, needed in zip(values, ctx.needs_input_grad[3:], strict=True)
            ]
            return leaves, _run(*pair, dict(zip(names, leaves, strict=True)), around, grad=True)

        ctx.kept = spread(run, parts)
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
