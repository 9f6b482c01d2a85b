"""GS-LoRA++: group-sparse LoRA with prototypes, for few images and for retained classes without any.

Zhao et al., Practical Continual Forgetting for Pre-trained Vision Models, 2025. A prototype is the mean feature of a
class before the operation; the forgotten are pushed off theirs, up to a bound, and the retained pulled to theirs. In
the public code the single-step prototypes come from a randomly initialised model, and twenty passes that were meant
to augment are identical; here they are means over the views, of the model as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kswapctl.methods import gs_lora
from kswapctl.methods.base import Context, Seen
from kswapctl.methods.terms import bounded, prototype_divergence
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(gs_lora.Forget):
    """GS-LoRA, with the forgotten pushed off their classes' prototypes and the retained pulled to theirs."""

    source = "Zhao et al., Practical Continual Forgetting for Pre-trained Vision Models, 2025"
    presets = gs_lora.Forget.presets

    sparsity: float = 0.1
    """A block whose gradient is below this share of the largest block's stays as it is (the group-sparse penalty)."""
    prototype_bound: float = 4.0
    """Divergence from its prototype, in nats, beyond which a forgotten feature is left alone."""
    push: float = 0.2
    """Weight of the push off the forgotten classes' prototypes."""
    pull: float = 0.2
    """Weight of the pull to the retained classes' prototypes."""

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Mean features by class, over all views of both roles."""
        features = torch.cat([p.features.mean(0) for p in pools.values()])  # (N, D)
        targets = torch.cat([p.targets for p in pools.values()])
        members = F.one_hot(targets, context.known).to(features.dtype)  # (N, K)
        context.memory["prototypes"] = members.T @ features / members.sum(0).clamp_min(1.0)[:, None]

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """The terms of GS-LoRA, the push and the pull."""
        gone, kept = (
            prototype_divergence(s.features, context.memory["prototypes"][s.targets])
            for s in (seen["forget"], seen["retain"])
        )
        return super().loss(context, seen) | {
            "push": self.push * bounded(gone, self.prototype_bound),
            "pull": self.pull * kept.mean(),
        }
