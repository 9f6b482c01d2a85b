"""L2: every weight is anchored alike to where it was.

The plainest of the quadratic anchors, as in Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks,
PNAS 2017, where it is the comparison. The anchor is on the change of the layers' weights, not on A and B.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kswapctl.methods.base import Context, Seen
from kswapctl.methods.plain import Plain
from kswapctl.methods.terms import change_size
from kswapctl.spec import Role


@dataclass(frozen=True)
class Anchored(Plain):
    """Plain training with a quadratic anchor."""

    source = "Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017 (its L2 comparison)"

    anchor: float = 0.002
    """Weight of half the summed squared change of the weights."""

    def hold(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """The anchor."""
        return {"anchor": self.anchor * change_size(context.layers)}


@dataclass(frozen=True)
class Learn(Anchored):
    """Learn while every weight is anchored alike to where it was."""

    kind = "learn"


@dataclass(frozen=True)
class Forget(Anchored):
    """Train the forgotten towards random other labels while every weight is anchored alike to where it was."""

    kind = "forget"

    anchor: float = 0.0007
    """Weight of half the summed squared change of the weights."""
