"""SalUn: random labels, but only the weights that matter most to the forgotten may move.

Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, ICLR 2024, Eq. 4 and 6. The public
code takes the two losses of Eq. 6 one after the other; here they are one. Only the adapted layers can be salient, and
the change is stored as the nearest adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kswapctl.errors import UsageError
from kswapctl.methods.base import Context
from kswapctl.methods.plain import Plain
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Plain):
    """Random labels on what is forgotten, with the gradient of all but the salient weights masked."""

    kind = "forget"
    source = "Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, ICLR 2024"

    forms: ClassVar = ("whole",)
    form: str = "whole"
    """What is trained: whole: the layers' weights, stored as the nearest adapter of this rank."""
    rank: int = 64
    """Rank of the adapters that the change is stored in."""
    lr: float = 1e-3
    """Highest learning rate of AdamW for the layers' weights."""
    salient: float = 0.5
    """Share of the weights that may move, in (0, 1]."""

    def __post_init__(self) -> None:
        """Some weights must be able to move."""
        super().__post_init__()
        if not 0 < self.salient <= 1:
            raise UsageError(f"salient must be above 0 and at most 1, not {self.salient:g}")

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Find the salient weights: the largest gradients of the forget loss, over all layers together."""
        pool = pools["forget"]
        trained = [p for group in context.groups.values() for p in group]
        assert context.forward is not None
        gradients = [torch.zeros_like(p) for p in trained]
        for part in range(0, len(pool), 64):
            _, outputs = context.forward(pool.prepare(pool.activations[0, part : part + 64]).float())
            loss = context.task.losses(outputs, pool.targets[part : part + 64]).sum()
            for total, gradient in zip(gradients, torch.autograd.grad(loss, trained), strict=True):
                total += gradient
        context.memory["masks"] = dict(zip(trained, salience_masks(gradients, self.salient), strict=True))

    def backward(self, context: Context, losses: Mapping[str, Tensor]) -> None:
        """The gradients, masked."""
        super().backward(context, losses)
        for parameter, mask in context.memory["masks"].items():
            parameter.grad.mul_(mask)


def salience_masks(gradients: list[Tensor], share: float) -> list[Tensor]:
    """Ones where an entry is among the ``share`` largest of all in absolute value, zeros elsewhere."""
    sizes = torch.cat([g.abs().flatten() for g in gradients])
    border = sizes.kthvalue(max(1, len(sizes) - round(share * len(sizes)) + 1)).values
    return [(g.abs() >= border).to(g.dtype) for g in gradients]
