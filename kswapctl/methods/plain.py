"""What the continual-learning baselines share: cross-entropy on what changes, rehearsal, and a term that holds the old.

To forget, an image is given the label of a random class that stays, drawn anew each time. The public code of
Zhao et al. 2024 adds a random number to the label modulo the number of forgotten classes, which can give back the
true one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kswapctl.methods.base import Context, Method, Seen
from kswapctl.spec import Role


def random_labels(context: Context, count: int) -> Tensor:
    """(count,) rows of the classifier, drawn evenly from the classes that stay."""
    drawn = torch.randint(len(context.retained), (count,), device=context.retained.device)
    return context.retained[drawn]


@dataclass(frozen=True)
class Plain(Method):
    """Cross-entropy on what changes and on what is rehearsed; a method adds how it holds the rest."""

    lr: float = 2e-3
    """Highest learning rate of AdamW for the adapters."""
    change_weight: float = 1.0
    """Weight of the cross-entropy on what is learned, or on what is forgotten with random other labels."""
    replay: float = 1.0
    """Weight of the cross-entropy on rehearsed images; 0 is the method without rehearsal."""

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Cross-entropies of both roles, and what holds the old."""
        retain, change = seen["retain"], seen[self.kind]
        targets = change.targets if self.kind == "learn" else random_labels(context, len(change.targets))
        return {
            "retain": self.replay * context.task.losses(retain.outputs, retain.targets).mean(),
            self.kind: self.change_weight * context.task.losses(change.outputs, targets).mean(),
        } | self.hold(context, seen)

    def hold(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Named terms that keep the model near to what it was."""
        return {}
