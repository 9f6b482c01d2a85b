"""Run a network, or several that differ from some block on, over decoded images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kswapctl.data.images import normalise
from kswapctl.models.threads import run_spread
from kswapctl.models.weights import Weights
from kswapctl.runtime import cores, one_core_each, spread
from kswapctl.spec import Preprocessing
from kswapctl.tasks import Task

BATCH = 128
"""Images per forward; fixed, so that the same weights give the same bits."""
LARGE = 160
"""Width in pixels from which on an eighth as many."""
AREA = BATCH // 8 * 224 * 224
"""Most pixels of those: each thread of a CPU has a forward of its own."""


def predict(
    model: nn.Module,
    pixels: Tensor,
    preprocessing: Preprocessing,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """(N, K) fp32 logits of (N, C, H, W) uint8 images, on the model's device, returned on the CPU."""
    return _run(model, pixels, preprocessing, lambda outputs: outputs, report)


@torch.inference_mode()
def answer(
    task: Task,
    model: nn.Module,
    pixels: Tensor,
    preprocessing: Preprocessing,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """What ``task`` keeps of the outputs for each of (N, C, H, W) uint8 images, to measure them by; on the CPU."""
    size = (pixels.shape[-2], pixels.shape[-1])
    return _run(model, pixels, preprocessing, lambda outputs: task.answers(outputs, size), report)


def _run(
    model: nn.Module,
    pixels: Tensor,
    preprocessing: Preprocessing,
    keep: Callable[[Tensor], Tensor],
    report: Callable[[int], None] | None,
) -> Tensor:
    device = next(model.parameters()).device

    @torch.inference_mode()
    def run(part: Tensor) -> Tensor:
        kept = keep(model(normalise(part.to(device), preprocessing)).float()).cpu()
        if report:
            report(len(part))
        return kept

    parts = pixels.split(batch_of(pixels))
    if not len(pixels):
        return torch.empty(0, 0)
    if device.type != "cpu":
        return torch.cat([run(part) for part in parts])
    with one_core_each():
        return torch.cat(spread(run, parts))


def batch_of(pixels: Tensor) -> int:
    """Images per forward of (N, C, H, W)."""
    if pixels.shape[-1] < LARGE:
        return BATCH
    return max(1, min(BATCH // 8, AREA // pixels.shape[-2:].numel()))


@torch.inference_mode()
def answer_each(
    task: Task,
    halves: tuple[nn.Module, nn.Module],
    versions: Sequence[Weights],
    pixels: Tensor,
    preprocessing: Preprocessing,
    report: Callable[[int], None],
) -> list[Tensor]:
    """For each of ``versions``, what :func:`answer` gives for (N, C, H, W) uint8 images.

    ``halves`` is a network cut at a block: the part below runs once for all versions, the part above once for each,
    with the version's weights in place of its own.
    """
    below, above = halves
    device, size = next(above.parameters()).device, (pixels.shape[-2], pixels.shape[-1])
    answers: list[list[Tensor]] = [[] for _ in versions]
    with one_core_each():
        for part in pixels.split(batch_of(pixels) * (cores() if device.type == "cpu" else 1)):
            shared = run_spread(functional_call, below, {}, normalise(part.to(device), preprocessing))
            for found, weights in zip(answers, versions, strict=True):
                found.append(task.answers(run_spread(functional_call, above, weights, shared).float(), size).cpu())
            report(len(part))
    return [torch.cat(found) for found in answers]
