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
from kswapctl.models.depths import SHARES, blocks_at, pooled
from kswapctl.models.heads import classifier_path
from kswapctl.spec import Preprocessing

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

LAST = "last"
"""The depth before the classifier."""
DEPTHS = (*SHARES, LAST)
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
    places = blocks_at(blocks)
    caught: dict[str, list[Tensor]] = {depth: [] for depth in DEPTHS}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, depth=depth: caught[depth].append(pooled(output).float().cpu())
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
