"""Bi-level: forgetting comes first; the retained gradient may not act against it.

After BLUR: A Bi-Level Optimization Approach for LLM Unlearning, 2025, where forgetting is the lower level and has
priority. Each step follows the forget gradient, and of the retain gradient only what does not conflict with it. Once
every forgotten image is beyond the bound, its gradient is zero and only the retained ones speak. What differs: one
joint direction a step instead of the paper's nested loops.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kswapctl.methods.base import POSITIVE, Context, Method, Seen
from kswapctl.methods.terms import bounded, distill, without_conflict
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Method):
    """Follow the bounded forget gradient, and the part of the retain gradient that does not conflict."""

    kind = "forget"
    source = "BLUR: A Bi-Level Optimization Approach for LLM Unlearning, 2025"
    ranges: ClassVar = {"temperature": POSITIVE}

    bound: float = 1.5
    """Forget loss, in ln K, above which an image counts as forgotten."""
    beta: float = 1.0
    """Weight of the forget loss."""
    distillation: float = 3.0
    """Weight of the distillation on retained images, beside their cross-entropy."""
    temperature: float = 2.0
    """Temperature of the distillation."""

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """The two levels."""
        retain, forget = seen["retain"], seen["forget"]
        held = distill(retain.outputs, retain.before, self.temperature)
        gone = bounded(context.task.losses(forget.outputs, forget.targets), self.bound * context.chance)
        kept = context.task.losses(retain.outputs, retain.targets).mean() + self.distillation * held
        return {"forget": self.beta * gone, "retain": kept}

    def backward(self, context: Context, losses: Mapping[str, Tensor]) -> None:
        """The forget gradient, and that of all else freed of its conflict with it."""
        trained = [p for group in context.groups.values() for p in group]
        others = torch.stack([loss for name, loss in losses.items() if name != "forget"]).sum()
        gradients = (
            torch.autograd.grad(losses["forget"], trained, retain_graph=True, materialize_grads=True),
            torch.autograd.grad(others, trained, materialize_grads=True),
        )
        first, second = (torch.cat([g.flatten() for g in found]) for found in gradients)
        joint = first + without_conflict(second, first)
        parts = joint.split([p.numel() for p in trained])
        for parameter, part in zip(trained, parts, strict=True):
            parameter.grad = part.view_as(parameter)
