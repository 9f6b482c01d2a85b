"""LIRF: what is to be forgotten is filtered out of the network and put into a deposit that can bring it back.

Ye et al., Learning with Recoverable Forgetting, ECCV 2022. The deposit of the paper is a pruned copy of the upper
network, trained beside; here it is the stack itself: rolling back brings the knowledge back exactly. The filter is the
paper's: features of the forgotten are driven apart from the old ones while answers over the retained classes stay, on
both sets. Features before the classifier are compared, not attention maps of a middle stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kswapctl.methods.base import POSITIVE, Context, Method, Seen
from kswapctl.methods.plain import random_labels
from kswapctl.methods.terms import distill, turned
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Method):
    """Drive the features of the forgotten apart from the old ones, and distil the answers over what stays."""

    kind = "forget"
    source = "Ye et al., Learning with Recoverable Forgetting, ECCV 2022"
    ranges: ClassVar = {"temperature": POSITIVE}

    apart: float = 1.0
    """Weight of the cosine between the forgotten images' features now and before."""
    relabel: float = 0.5
    """Weight of the cross-entropy of the forgotten with random other labels."""
    partial: float = 0.5
    """Weight of the distillation over the retained classes on forgotten images."""
    distillation: float = 1.0
    """Weight of the distillation on retained images."""
    retain: float = 1.0
    """Weight of the cross-entropy on retained images."""
    temperature: float = 4.0
    """Temperature of the distillations."""

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Filter, partial knowledge, and what stays."""
        retain, forget = seen["retain"], seen["forget"]
        stays = context.retained
        labels = random_labels(context, len(forget.targets))
        return {
            "apart": self.apart * turned(forget.features, forget.before_features),
            "relabel": self.relabel * context.task.losses(forget.outputs, labels).mean(),
            "partial": self.partial * distill(forget.outputs[:, stays], forget.before[:, stays], self.temperature),
            "distillation": self.distillation * distill(retain.outputs, retain.before, self.temperature),
            "retain": self.retain * context.task.losses(retain.outputs, retain.targets).mean(),
        }
