"""EWC: the weights are anchored to where they were, each by the Fisher information it carries.

Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017.
The diagonal Fisher information of the rehearsed images, image by image with labels drawn from the model, over its mean.
The anchor is on the change of the layers' weights, so it holds adapters as it would hold whole weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from kswapctl.methods.base import COUNT, Context, Seen
from kswapctl.methods.importance import drawn_log_loss, normalised, squared_gradients
from kswapctl.methods.plain import Plain
from kswapctl.methods.terms import anchor
from kswapctl.spec import Role


@dataclass(frozen=True)
class Anchored(Plain):
    """Plain training with an anchor weighted by importance."""

    source = "Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017"
    ranges: ClassVar = {"importance_images": COUNT}

    anchor: float = 0.002
    """Weight of half the summed squared change of the weights, times their importance over its mean."""
    importance_images: int = 200
    """Most images from which the importance is taken."""

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Measure the importances."""
        found = squared_gradients(context, pools["retain"], drawn_log_loss, self.importance_images)
        context.memory["importances"] = normalised(found)

    def hold(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """The anchor."""
        return {"anchor": self.anchor * anchor(context.layers, context.memory["importances"])}


@dataclass(frozen=True)
class Learn(Anchored):
    """Learn while the weights are anchored by the Fisher information."""

    kind = "learn"


@dataclass(frozen=True)
class Forget(Anchored):
    """Train the forgotten towards random other labels while the weights are anchored by the Fisher information."""

    kind = "forget"
