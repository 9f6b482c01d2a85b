"""Features along the depth of a network: where a third and two thirds of it end, and how their outputs are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kswapctl.models.blocks import Block

SHARES: dict[str, float] = {"1/3": 1 / 3, "2/3": 2 / 3}
"""Name of a depth to the share of the blocks that lie up to it."""


def blocks_at(blocks: Sequence[Block], shares: dict[str, float] = SHARES) -> dict[str, str]:
    """Name of each depth to the path of the last block up to it."""
    return {name: blocks[max(0, round(len(blocks) * share) - 1)].name for name, share in shares.items()}


def pooled(block: nn.Module, output: Any) -> Tensor:
    """(B, D): the mean over tokens of (B, T, D), or over places of (B, D, H, W) or (B, H, W, D).

    Where channels are, the norms and biases of ``block`` say; else the two axes that are alike are places.
    """
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    if tensor.ndim < 3:
        return tensor
    if tensor.ndim == 3:
        return tensor.mean(1)
    widths = {parameter.numel() for parameter in block.parameters() if parameter.ndim == 1}
    first, last = tensor.shape[1] in widths, tensor.shape[3] in widths
    channels_last = last if first != last else tensor.shape[1] == tensor.shape[2] != tensor.shape[3]
    return tensor.mean((1, 2)) if channels_last else tensor.mean((2, 3))
