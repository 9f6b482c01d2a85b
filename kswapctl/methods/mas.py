"""MAS: the weights are anchored to where they were, each by the sensitivity of the outputs it carries.

Aljundi et al., Memory Aware Synapses: Learning what (not) to forget, ECCV 2018.
The mean absolute gradient of the logits' squared norm on the rehearsed images, image by image, over its mean.
The anchor is on the change of the layers' weights, so it holds adapters as it would hold whole weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from kswapctl.methods.base import COUNT, Context, Seen
from kswapctl.methods.importance import absolute_gradients, normalised, squared_length
from kswapctl.methods.plain import Plain
from kswapctl.methods.terms import anchor
from kswapctl.spec import Role


@dataclass(frozen=True)
class Anchored(Plain):
    """Plain training with an anchor weighted by importance."""

    source = "Aljundi et al., Memory Aware Synapses: Learning what (not) to forget, ECCV 2018"
    ranges: ClassVar = {"importance_images": COUNT}

    anchor: float = 0.002
    """Weight of half the summed squared change of the weights, times their importance over its mean."""
    importance_images: int = 200
    """Most images from which the importance is taken."""

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Measure the importances."""
        found = absolute_gradients(context, pools["retain"], squared_length, self.importance_images)
        context.memory["importances"] = normalised(found)

    def hold(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """The anchor."""
        return {"anchor": self.anchor * anchor(context.layers, context.memory["importances"])}


@dataclass(frozen=True)
class Learn(Anchored):
    """Learn while the weights are anchored by the sensitivity of the outputs."""

    kind = "learn"


@dataclass(frozen=True)
class Forget(Anchored):
    """Train the forgotten towards random other labels while weights are anchored by the outputs' sensitivity."""

    kind = "forget"

    anchor: float = 0.0007
    """Weight of half the summed squared change of the weights, times their importance over its mean."""
