"""What a network makes of images, gathered in one pass: features at three depths, and logits.

Every attack but those that train or quantise the network runs on these arrays alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kswapctl.data.images import Images, normalise
from kswapctl.models.blocks import find_blocks
from kswapctl.models.depths import SHARES, blocks_at, pooled
from kswapctl.models.heads import classifier_path
from kswapctl.runtime import one_core_each, spread
from kswapctl.spec import Preprocessing

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

LAST = "last"
"""The depth before the classifier."""
DEPTHS = (*SHARES, LAST)
"""Where features are taken: after a third and two thirds of the blocks (mean over places), and at the classifier."""
LOGITS = "logits"
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


def observe(
    network: nn.Module, images: Images, preprocessing: Preprocessing, report: Callable[[int], None] | None = None
) -> Observed:
    """Run ``network`` over ``images`` once and keep what it makes of them; on a CPU several batches at a time."""
    device = next(network.parameters()).device
    here = threading.local()  # a batch is run by one thread, which finds there what its own hooks kept

    @torch.inference_mode()
    def run(part: Tensor) -> dict[str, Tensor]:
        here.kept = {}
        outputs = network(normalise(part.to(device), preprocessing)).float().cpu()
        if report:
            report(len(part))
        return {**here.kept, LOGITS: outputs}

    def keep(depth: str, features: Tensor) -> None:
        here.kept[depth] = features.float().cpu()

    hooks = _watch(network, keep)
    parts = images.pixels.split(BATCH)
    try:
        with one_core_each():
            seen = spread(run, parts) if device.type == "cpu" else [run(part) for part in parts]
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: torch.cat([part[name] for part in seen]).numpy() for name in (*DEPTHS, LOGITS)}
    return Observed({d: found[d] for d in DEPTHS}, found[LOGITS], tuple(s.label for s in images.samples))


def _watch(network: nn.Module, keep: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
    """Hooks that hand ``keep`` the pooled features of each depth."""
    path = classifier_path(network)
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda block, _, output, depth=depth: keep(depth, pooled(block, output))
        )
        for depth, name in blocks_at(find_blocks(network, path)).items()
    ]
    classifier = network.get_submodule(path)
    return [*hooks, classifier.register_forward_pre_hook(lambda _, inputs: keep(LAST, inputs[0]))]
