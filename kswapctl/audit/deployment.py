"""M7: does what was forgotten come back when the weights are rounded, as they are when a model is shipped?

Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, ICLR 2025, saw 21% come back as 83% at 4 bits.
Weights are rounded and computed with in fp32: what is measured is the loss of precision, not a kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kswapctl.models.weights import Weights

GROUP = 32
"""Weights that share a scale at 4 bits."""


def to_half(weight: Tensor) -> Tensor:
    """Rounded to fp16."""
    return weight.half().to(weight.dtype)


def to_brain(weight: Tensor) -> Tensor:
    """Rounded to bf16."""
    return weight.bfloat16().to(weight.dtype)


def to_int8(weight: Tensor) -> Tensor:
    """Rounded to 8 bits, symmetric, one scale an output channel."""
    return _round(weight.flatten(1), 127).reshape(weight.shape)


def to_int4(weight: Tensor) -> Tensor:
    """Rounded to 4 bits, symmetric, one scale for each 32 weights of an output channel."""
    flat = weight.flatten(1)
    padded = torch.nn.functional.pad(flat, (0, -flat.shape[1] % GROUP))
    groups = _round(padded.reshape(-1, GROUP), 7)
    return groups.reshape(padded.shape)[:, : flat.shape[1]].reshape(weight.shape)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {"fp16": to_half, "bf16": to_brain, "int8": to_int8, "int4": to_int4}
"""Name of a shipped form to how it rounds a matrix."""


def rounded(weights: Weights, form: str) -> Weights:
    """``weights`` with every matrix and kernel rounded as ``form`` does; vectors and embeddings stay."""
    return {
        name: FORMS[form](w) if name.endswith(".weight") and w.ndim >= 2 and w.is_floating_point() else w
        for name, w in weights.items()
    }


def _round(rows: Tensor, most: int) -> Tensor:
    """Each row to multiples of its largest value over ``most``."""
    scale = (rows.abs().amax(1, keepdim=True) / most).clamp_min(torch.finfo(rows.dtype).tiny)
    return (rows / scale).round() * scale
