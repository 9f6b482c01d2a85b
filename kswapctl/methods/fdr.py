"""FDR: the softmax outputs of the rehearsed images stay near to the old ones in Euclidean distance.

Benjamin et al., Measuring and regularizing networks in function space, ICLR 2019.
The public code of Zhao et al. 2024 leaves the softmax out; the paper has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kswapctl.methods.base import Context, Seen
from kswapctl.methods.plain import Plain
from kswapctl.methods.terms import function_distance
from kswapctl.spec import Role


@dataclass(frozen=True)
class Matched(Plain):
    """Plain training with the old outputs of rehearsed images matched."""

    source = "Benjamin et al., Measuring and regularizing networks in function space, ICLR 2019"

    replay: float = 0.0
    """Weight of the cross-entropy on rehearsed images beside the match."""
    match: float = 10.0
    """Weight of the mean distance between softmax outputs on rehearsed images."""

    def hold(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """The distance of the outputs."""
        return {"match": self.match * function_distance(seen["retain"].outputs, seen["retain"].before)}


@dataclass(frozen=True)
class Learn(Matched):
    """Learn while the softmax outputs of rehearsed images stay near to the old ones."""

    kind = "learn"


@dataclass(frozen=True)
class Forget(Matched):
    """Forget by random labels while the softmax outputs of rehearsed images stay near to the old ones."""

    kind = "forget"
