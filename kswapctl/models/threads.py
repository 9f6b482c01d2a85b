"""One batch on several threads: each runs its rows forward, and later backward, on a core of its own."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
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
_kept: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]] = weakref.WeakKeyDictionary()


def run_spread(run: Run, module: nn.Module, weights: Weights, inputs: Tensor, room: int = 0) -> Tensor:
    """``run(module, weights, inputs)``; gradients flow to ``weights`` alone.

    On a CPU with several threads the rows of ``inputs`` are divided among them; else they run together. ``run`` is
    called in other threads, each with a copy of ``module`` that shares its tensors. Where the way back would need more
    than ``room`` bytes of what the way there computed (0: no limit), that is computed again, a few rows at a time
    (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).
    """
    threads = max(1, min(cores(), len(inputs) // LEAST)) if inputs.device.type == "cpu" else 1
    parts = list(zip(_alike(module, threads), inputs.tensor_split(threads), strict=True))
    if torch.is_grad_enabled() and any(w.requires_grad for w in weights.values()):
        needed = _graph_size(run, module, weights, inputs) if room else 0
        at_once = max(1, room // (needed * threads)) if needed * len(inputs) > room else 0
        if threads < 2 and not at_once:
            return run(module, weights, inputs)
        joined: Tensor = _Spread.apply(run, parts, at_once, list(weights), *weights.values())
        return joined
    return torch.cat(_only_forward(run, parts, weights))


def _only_forward(run: Run, parts: list[tuple[nn.Module, Tensor]], weights: Weights) -> list[Tensor]:
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

    def forward(pair: tuple[nn.Module, Tensor]) -> Tensor:
        with mode():
            return run(pair[0], weights, pair[1])

    return spread(forward, parts)


def _alike(module: nn.Module, count: int) -> list[nn.Module]:
    """``module`` and copies of it that share its tensors: putting other weights in place is not safe across threads."""
    twins = _twins.setdefault(module, [])
    while len(twins) < count - 1:
        shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
        twins.append(copy.deepcopy(module, shared))
    return [module, *twins[: count - 1]]


def _graph_size(run: Run, module: nn.Module, weights: Weights, inputs: Tensor) -> int:
    """Bytes a row that the way back needs; measured once on one row."""
    known = _kept.setdefault(module, {})
    key = tuple(inputs.shape[1:])
    if key not in known:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = run(module, weights, inputs[:1])
        for shared in (*module.parameters(), *weights.values(), inputs, outputs):
            sizes.pop(shared.untyped_storage().data_ptr(), None)
        known[key] = sum(sizes.values())
    return known[key]


class _Spread(torch.autograd.Function):
    """Each part keeps a graph of its own, over its own leaves, so that all can be walked back at once."""

    @staticmethod
    def forward(
        ctx: Any, run: Run, parts: list[tuple[nn.Module, Tensor]], at_once: int, names: list[str], *values: Tensor
    ) -> Tensor:
        """Returns the joined outputs of the parts; with ``at_once`` no graph is kept."""
        ctx.run, ctx.parts, ctx.at_once, ctx.names = run, parts, at_once, names
        if at_once:
            ctx.save_for_backward(*values)

            def in_turn(module: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
                return torch.cat([run(module, weights, few) for few in inputs.split(at_once)])

            return torch.cat(_only_forward(in_turn, parts, dict(zip(names, values, strict=True))))
        kept = _with_graphs(run, parts, dict(zip(names, values, strict=True)), ctx.needs_input_grad[4:])
        ctx.leaves = [leaves for leaves, _ in kept]
        ctx.save_for_backward(*(outputs for _, outputs in kept))  # saved, they go with the graph that this is part of
        return torch.cat([outputs.detach() for _, outputs in kept])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Sums over the parts, in their order: the same bits every time."""
        rows = gradient.split([len(inputs) for _, inputs in ctx.parts])
        if not ctx.at_once:
            kept = list(zip(ctx.leaves, ctx.saved_tensors, strict=True))
            return None, None, None, None, *_walk_back(kept, rows, once=False)
        weights = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        sums: list[Tensor | None] = [None] * len(weights)
        for start in range(0, max(map(len, rows)), ctx.at_once):
            taken = slice(start, start + ctx.at_once)
            few = [(module, inputs[taken]) for module, inputs in ctx.parts if start < len(inputs)]
            kept = _with_graphs(ctx.run, few, weights, ctx.needs_input_grad[4:])
            sums = _add(sums, _walk_back(kept, [r[taken] for r in rows if start < len(r)], once=True))
        return None, None, None, None, *sums


Graph = tuple[list[Tensor], Tensor]
"""Leaves that stand for the weights, and the outputs computed from them."""


def _with_graphs(
    run: Run, parts: list[tuple[nn.Module, Tensor]], weights: Weights, asked: Sequence[bool]
) -> list[Graph]:
    @torch.enable_grad()
    def part(pair: tuple[nn.Module, Tensor]) -> Graph:
        leaves = [value.detach().requires_grad_(a) for value, a in zip(weights.values(), asked, strict=True)]
        return leaves, run(pair[0], dict(zip(weights, leaves, strict=True)), pair[1])

    return spread(part, parts)


def _walk_back(kept: Sequence[Graph], gradients: Sequence[Tensor], *, once: bool) -> list[Tensor | None]:
    """The gradient of each weight, summed over the parts; ``once`` frees the graphs on the way."""

    def back(item: tuple[Graph, Tensor]) -> list[Tensor | None]:
        (leaves, outputs), wanted = item
        moved = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(outputs, moved, wanted, retain_graph=not once, allow_unused=True))
        return [next(found) if leaf.requires_grad else None for leaf in leaves]

    first, *others = spread(back, list(zip(kept, gradients, strict=True)))
    for other in others:
        first = _add(first, other)
    return first


def _add(left: list[Tensor | None], right: list[Tensor | None]) -> list[Tensor | None]:
    return [b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True)]
