"""Where in the network an operation acts: how far each block's weights moved, and which gradient it began with.

After Figures 2, 4 and 6 of Xing et al., Knowledge Swapping via Learning and Unlearning, ICML 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kswapctl.data.images import normalise
from kswapctl.models.dense import examine
from kswapctl.spec import Preprocessing
from kswapctl.tasks import Task

BATCH = 128


@dataclass(frozen=True)
class BlockChange:
    """How far one block's weights moved between two versions."""

    name: str
    change: float
    """Frobenius norm of the difference."""
    relative: float
    """The same, over the norm of the first version's weights."""


@dataclass(frozen=True)
class Profile:
    """One operation, block by block."""

    name: str
    """The version it made, and what it did."""
    blocks: tuple[str, ...]
    change: tuple[float, ...]
    """Frobenius norm of the weights' change, over the norm of the weights."""
    gradient: tuple[float, ...] | None
    """Mean absolute gradient of the loss on the operation's classes, before it; None where no test image has one."""


def changes_by_block(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], blocks: Mapping[str, Sequence[str]]
) -> tuple[BlockChange, ...]:
    """How far each block moved between two sets of weights, in its layers (their paths) and in others that changed."""
    found = []
    for name, layers in blocks.items():
        keys = [f"{layer}.weight" for layer in layers]
        inside = [k for k, weight in before.items() if k.startswith(f"{name}.") and weight.shape == after[k].shape]
        keys += [k for k in inside if k not in keys and not torch.equal(before[k], after[k])]
        moved = sum((after[k].float() - before[k].float()).square().sum().item() for k in keys) ** 0.5
        size = sum(before[k].float().square().sum().item() for k in keys) ** 0.5
        found.append(BlockChange(name, moved, moved / size if size else 0.0))
    return tuple(found)


def gradient_by_block(
    network: nn.Module,
    task: Task,
    images: tuple[Tensor, Tensor],
    rows: Sequence[int],
    preprocessing: Preprocessing,
    blocks: Mapping[str, Sequence[str]],
) -> tuple[float, ...]:
    """Mean absolute gradient of the loss, over each block's weights.

    ``images`` are (N, C, H, W) uint8 and their targets. The loss is the mean over the images of their mean over the
    items whose class is among ``rows``; an image without one counts as a loss of zero.
    """
    weights = {
        name: [network.get_parameter(f"{layer}.weight").requires_grad_(True) for layer in layers]
        for name, layers in blocks.items()
    }
    network.zero_grad(set_to_none=True)
    wanted = torch.tensor(rows) + task.spare
    batch = max(1, round(BATCH * task.share))
    for part, expected in zip(images[0].split(batch), images[1].split(batch), strict=True):
        features, outputs = examine(network, normalise(part, preprocessing))
        items = task.items(features, outputs, task.truth(expected, outputs))
        chosen = torch.isin(items.targets, wanted)  # (B, S)
        losses = task.losses(items.outputs[chosen], items.targets[chosen])
        shares = (1 / chosen.sum(1, keepdim=True).clamp_min(1)).expand_as(chosen)[chosen]
        (losses * shares).sum().div(len(images[0])).backward()
    return tuple(_mean_size([w.grad for w in group if w.grad is not None]) for group in weights.values())


def _mean_size(gradients: Sequence[Tensor]) -> float:
    return torch.cat([g.abs().flatten() for g in gradients]).mean().item() if gradients else 0.0
