"""AdamW along a cosine, the proximal step that makes unused blocks exactly zero, and noise on the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from kswapctl.methods import Method
from kswapctl.training.subject import Subject

WARM_UP = 0.08
"""Share of the steps over which the learning rate rises."""


def build_optimiser(subject: Subject, method: Method) -> torch.optim.AdamW:
    """AdamW over the adapters, and over the rows of learned classes at a rate of their own."""
    adapters = [p for parameters in subject.groups.values() for p in parameters]
    groups = [{"params": adapters, "lr": method.lr, "weight_decay": method.weight_decay}]
    if rows := subject.new_rows():
        groups.append({"params": rows, "lr": method.head_lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)


def cosine(step: int, steps: int) -> float:
    """Factor on the learning rate at ``step`` of ``steps``: a linear rise, then half a cosine to zero."""
    rise = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def shrink(optimiser: torch.optim.Optimizer, groups: dict[str, list[nn.Parameter]], share: float) -> None:
    """Proximal step of a weight times the sum over groups of the norm of their parameters.

    A block whose B factors are zero changes nothing, whatever its A: groups are its B factors. The step is taken in
    the metric of Adam, one scale a group (Duchi et al., Adaptive Subgradient Methods, JMLR 2011; block soft
    thresholding: Parikh & Boyd, Proximal Algorithms, 2014, section 6.5.1). The weight is ``share`` of the largest
    gradient norm of a group, so that it means the same for every network and loss: a group stays at exactly zero
    where its averaged gradient is below that.
    """
    rate = optimiser.param_groups[0]["lr"]
    _, decay = optimiser.param_groups[0]["betas"]
    seen: list[list[torch.Tensor]] = [list(ups) for ups in groups.values() if all(p in optimiser.state for p in ups)]
    squares = [_second_moment(optimiser, ups, decay) for ups in seen]
    if not seen:
        return
    weight = share * torch.stack(squares).max().sqrt()
    for ups, square in zip(seen, squares, strict=True):
        metric = (square / sum(p.numel() for p in ups)).sqrt()
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(ups)))
        kept = (1 - weight * rate / (metric * norm).clamp_min(1e-20)).clamp_min(0.0)
        torch._foreach_mul_(ups, kept)


def _second_moment(optimiser: torch.optim.Optimizer, ups: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Running mean of the squared norm of the gradient of ``ups``."""
    states = [optimiser.state[p] for p in ups]
    total = torch.stack([s["exp_avg_sq"].sum() for s in states]).sum()
    moment: torch.Tensor = total / (1 - decay ** states[0]["step"])
    return moment


@contextmanager
def perturbed(parameters: Sequence[nn.Parameter], deviation: float) -> Iterator[None]:
    """Gaussian noise of ``deviation`` on ``parameters`` within; the gradient is that of a neighbour.

    Xie et al., Artificial Neural Variability for Deep Learning, Neural Computation 2021 (NVRM). Nothing is done at 0.
    """
    if not deviation:
        yield
        return
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter), alpha=deviation)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), kept)
