"""DER++: the logits of the rehearsed images are matched to the old ones, and their labels too.

Buzzega et al., Dark Experience for General Continual Learning: a Strong, Simple Baseline, NeurIPS 2020.
Both terms see the same rehearsed batch; the paper draws two.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kswapctl.methods.base import Context, Seen
from kswapctl.methods.plain import Plain
from kswapctl.methods.terms import logit_distance
from kswapctl.spec import Role


@dataclass(frozen=True)
class Matched(Plain):
    """Plain training with the old outputs of rehearsed images matched."""

    source = "Buzzega et al., Dark Experience for General Continual Learning: a Strong, Simple Baseline, NeurIPS 2020"

    replay: float = 1.0
    """Weight of the cross-entropy on rehearsed images beside the match."""
    match: float = 0.5
    """Weight of the mean squared difference of logits on rehearsed images."""

    def hold(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """The distance of the outputs."""
        return {"match": self.match * logit_distance(seen["retain"].outputs, seen["retain"].before)}


@dataclass(frozen=True)
class Learn(Matched):
    """Learn while logits and labels of the rehearsed images are matched."""

    kind = "learn"


@dataclass(frozen=True)
class Forget(Matched):
    """Forget by random labels while logits and labels of the rehearsed images are matched."""

    kind = "forget"
