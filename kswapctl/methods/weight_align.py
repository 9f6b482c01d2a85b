"""Weight aligning: after learning, the new rows of the classifier get the old rows' mean length.

Zhao et al., Maintaining Discrimination and Fairness in Class Incremental Learning, CVPR 2020, Eq. 9 and 10:
cross-entropy and distillation, then the rows' norms are aligned, which takes away the bias towards what was learned
last. What differs: the new rows' biases are scaled with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kswapctl.methods.base import Context, Seen
from kswapctl.methods.plain import Plain
from kswapctl.methods.terms import distill
from kswapctl.models.heads import Columns, GrowingHead
from kswapctl.spec import Role


@dataclass(frozen=True)
class Learn(Plain):
    """Cross-entropy and distillation; then the new rows get the old rows' mean length."""

    kind = "learn"
    source = "Zhao et al., Maintaining Discrimination and Fairness in Class Incremental Learning, CVPR 2020"

    distillation: float = 1.0
    """Weight of the distillation over the old classes, on old and new images."""
    temperature: float = 2.0
    """Temperature of the distillation."""

    def hold(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Distillation of both roles over the classes that were known."""
        held = [distill(s.outputs[:, : context.known], s.before, self.temperature) for s in seen.values()]
        return {"distillation": self.distillation * torch.stack(held).mean()}

    @torch.no_grad()
    def finish(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Align the rows; nothing to do where no row was added."""
        head = context.classifier.head if isinstance(context.classifier, Columns) else context.classifier
        if isinstance(head, GrowingHead):
            factor = alignment(head.known.weight.flatten(1), head.rows)
            head.rows.mul_(factor)
            head.bias.mul_(factor)


def alignment(old: Tensor, new: Tensor) -> Tensor:
    """Mean length of (K, D) old rows over that of the (N, D) new ones."""
    factor: Tensor = old.norm(dim=1).mean() / new.norm(dim=1).mean().clamp_min(1e-12)
    return factor
