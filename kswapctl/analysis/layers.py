"""Where in the network an operation acts: how far each block's weights moved, and which gradient it began with.

After Figures 2, 4 and 6 of Xing et al., Knowledge Swapping via Learning and Unlearning, ICML 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kswapctl.data.images import normalise
from kswapctl.spec import Preprocessing

BATCH = 128


@dataclass(frozen=True)
class Profile:
    """One operation, block by block."""

    name: str
    """The version it made, and what it did."""
    blocks: tuple[str, ...]
    change: tuple[float, ...]
    """Frobenius norm of the weights' change, over the norm of the weights."""
    gradient: tuple[float, ...]
    """Mean absolute gradient of the cross-entropy on the operation's classes, before the operation."""


def change_by_block(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], blocks: Mapping[str, Sequence[str]]
) -> tuple[float, ...]:
    """Relative change of each block's layers (their paths), between two sets of weights."""
    found = []
    for layers in blocks.values():
        keys = [f"{layer}.weight" for layer in layers]
        moved = sum((after[k].float() - before[k].float()).square().sum().item() for k in keys) ** 0.5
        size = sum(before[k].float().square().sum().item() for k in keys) ** 0.5
        found.append(moved / size if size else 0.0)
    return tuple(found)


def gradient_by_block(
    network: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    preprocessing: Preprocessing,
    blocks: Mapping[str, Sequence[str]],
) -> tuple[float, ...]:
    """Mean absolute gradient of the mean cross-entropy of (N, C, H, W) uint8 images, over each block's weights."""
    weights = {
        name: [network.get_parameter(f"{layer}.weight").requires_grad_(True) for layer in layers]
        for name, layers in blocks.items()
    }
    network.zero_grad(set_to_none=True)
    for part, expected in zip(pixels.split(BATCH), targets.split(BATCH), strict=True):
        loss = F.cross_entropy(network(normalise(part, preprocessing)), expected, reduction="sum") / len(targets)
        loss.backward()
    return tuple(_mean_size([w.grad for w in group if w.grad is not None]) for group in weights.values())


def _mean_size(gradients: Sequence[Tensor]) -> float:
    return torch.cat([g.abs().flatten() for g in gradients]).mean().item() if gradients else 0.0
