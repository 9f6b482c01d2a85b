"""Run a network over decoded images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kswapctl.data.images import normalise
from kswapctl.spec import Preprocessing

BATCH = 128
"""Images per forward; fixed, so that the same weights give the same bits."""


@torch.inference_mode()
def predict(
    model: nn.Module,
    pixels: Tensor,
    preprocessing: Preprocessing,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """(N, K) fp32 logits of (N, C, H, W) uint8 images, on the model's device, returned on the CPU."""
    device = next(model.parameters()).device
    outputs = []
    for part in pixels.split(BATCH):
        outputs.append(model(normalise(part.to(device), preprocessing)).float().cpu())
        if report:
            report(len(part))
    return torch.cat(outputs) if outputs else torch.empty(0, 0)
