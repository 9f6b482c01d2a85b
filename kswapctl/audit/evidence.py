"""What a network makes of images, gathered in one pass: features at three depths, and logits.

Every attack but those that train or quantise the network runs on these arrays alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kswapctl.data.images import Images, normalise
from kswapctl.models.blocks import find_blocks
from kswapctl.models.heads import classifier_path
from kswapctl.spec import Preprocessing

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

LAST = "last"
"""The depth before the classifier."""
DEPTHS = ("1/3", "2/3", LAST)
"""Where features are taken: after a third and two thirds of the blocks (mean over places), and at the classifier."""
BATCH = 128
"""Images per forward; fixed, so that the same weights give the same bits."""


@dataclass(frozen=True)
class Observed:
    """One network's view of N images."""

    depths: dict[str, Floats]
    """Depth to (N, D) features."""
    logits: Floats
    """(N, K), a column for each row of the network's own classifier."""
    names: tuple[str, ...]
    """Class names of the images."""


@torch.inference_mode()
def observe(
    network: nn.Module, images: Images, preprocessing: Preprocessing, report: Callable[[int], None] | None = None
) -> Observed:
    """Run ``network`` over ``images`` once and keep what it makes of them."""
    path = classifier_path(network)
    blocks = find_blocks(network, path)
    places = {DEPTHS[i]: blocks[max(0, round(len(blocks) * (i + 1) / 3) - 1)].name for i in range(2)}
    caught: dict[str, list[Tensor]] = {depth: [] for depth in DEPTHS}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, depth=depth: caught[depth].append(_pool(output).float().cpu())
        )
        for depth, name in places.items()
    ]
    hooks.append(
        network.get_submodule(path).register_forward_pre_hook(
            lambda _, inputs: caught[LAST].append(inputs[0].float().cpu())
        )
    )
    device = next(network.parameters()).device
    logits: list[Tensor] = []
    try:
        for part in images.pixels.split(BATCH):
            logits.append(network(normalise(part.to(device), preprocessing)).float().cpu())
            if report:
                report(len(part))
    finally:
        for hook in hooks:
            hook.remove()
    depths = {depth: torch.cat(parts).numpy() for depth, parts in caught.items()}
    return Observed(depths, torch.cat(logits).numpy(), tuple(s.label for s in images.samples))


def _pool(output: Any) -> Tensor:
    """(B, D): the mean over tokens of (B, T, D), or over places of (B, D, H, W) or (B, H, W, D)."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    if tensor.ndim < 3:
        return tensor
    if tensor.ndim == 3:
        return tensor.mean(1)
    channels_last = tensor.shape[1] == tensor.shape[2] != tensor.shape[3]
    return tensor.mean((1, 2)) if channels_last else tensor.mean((2, 3))
