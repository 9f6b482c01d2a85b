"""The images of one role, ready for training: what is frozen was computed once, for every view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kswapctl.data.images import normalise
from kswapctl.spec import Preprocessing
from kswapctl.training.subject import Subject

CHUNK = 128
"""Images per frozen forward."""


@dataclass(frozen=True)
class Pool:
    """N images in V views, as activations at the cut, with what the model said of them before the operation."""

    activations: Tensor
    """(V, N, ...) at the cut, or, uncached, (V, N, C, H, W) uint8 pixels."""
    targets: Tensor
    """(N,) rows of the classifier."""
    features: Tensor
    """(V, N, D) before the operation."""
    outputs: Tensor
    """(V, N, K_known) before the operation."""
    order: Tensor
    """Positions in 0 .. N - 1 to draw from; one that stands twice is drawn twice as often."""
    prepare: Callable[[Tensor], Tensor]
    """Turns a batch of ``activations`` into what the trained part takes."""

    def __len__(self) -> int:
        return len(self.targets)


def make_pool(
    subject: Subject,
    views: Tensor,
    targets: Tensor,
    preprocessing: Preprocessing,
    dtype: torch.dtype,
    budget: int,
    order: Tensor | None = None,
) -> Pool:
    """Run the frozen part, and the model as it is now, over ``views`` (V, N, C, H, W) uint8.

    Activations are kept in ``dtype`` where they fit into ``budget`` bytes; else only the pixels are, and the
    frozen part runs again in each step.
    """
    device = next(subject.model.parameters()).device

    def run_below(pixels: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, dtype):
            below: Tensor = subject.below(normalise(pixels.to(device), preprocessing))
        return below.to(dtype)

    known = subject.known_rows()
    first = run_below(views[0, :1])
    cached = first.numel() * first.element_size() * views.shape[0] * views.shape[1] <= budget
    kept, features, outputs = [], [], []
    for pixels in views.flatten(0, 1).split(CHUNK):
        activations = run_below(pixels)
        with torch.no_grad(), autocast(device, dtype):
            feature, output = subject.forward(activations)
        kept.append(activations if cached else pixels)
        features.append(feature.float())
        outputs.append(output.float()[:, :known])
    shape = views.shape[:2]
    return Pool(
        activations=torch.cat(kept).unflatten(0, shape),
        targets=targets.to(device),
        order=torch.arange(len(targets)) if order is None else order,
        features=torch.cat(features).unflatten(0, shape),
        outputs=torch.cat(outputs).unflatten(0, shape),
        prepare=(lambda batch: batch) if cached else run_below,
    )


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision in ``dtype``; off for fp32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
