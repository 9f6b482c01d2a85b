"""AdamW along a cosine, and the proximal step that makes unused blocks exactly zero."""

from __future__ import annotations

import math

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
    return torch.optim.AdamW(groups, betas=(0.9, 0.99))


def cosine(step: int, steps: int) -> float:
    """Factor on the learning rate at ``step`` of ``steps``: a linear rise, then half a cosine to zero."""
    rise = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def shrink(groups: dict[str, list[nn.Parameter]], amount: float) -> None:
    """Proximal step of ``amount`` times the sum of group norms: each norm falls by ``amount``, to zero at least.

    Parikh & Boyd, Proximal Algorithms, 2014, section 6.5.1 (block soft thresholding).
    """
    for parameters in groups.values():
        tensors: list[torch.Tensor] = list(parameters)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
        torch._foreach_mul_(tensors, (1 - amount / norm.clamp_min(1e-12)).clamp_min(0.0))
