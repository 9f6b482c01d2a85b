"""Run a network over decoded images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kswapctl.data.images import normalise
from kswapctl.runtime import one_core_each, spread
from kswapctl.spec import Preprocessing

BATCH = 128
"""Images per forward; fixed, so that the same weights give the same bits."""


def predict(
    model: nn.Module,
    pixels: Tensor,
    preprocessing: Preprocessing,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """(N, K) fp32 logits of (N, C, H, W) uint8 images, on the model's device, returned on the CPU."""
    device = next(model.parameters()).device

    @torch.inference_mode()
    def run(part: Tensor) -> Tensor:
        outputs: Tensor = model(normalise(part.to(device), preprocessing)).float().cpu()
        if report:
            report(len(part))
        return outputs

    parts = pixels.split(BATCH)
    if not len(pixels):
        return torch.empty(0, 0)
    if device.type != "cpu":
        return torch.cat([run(part) for part in parts])
    with one_core_each():
        return torch.cat(spread(run, parts))
