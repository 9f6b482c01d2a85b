"""NegGrad+: down the gradient on what is retained, up on what is forgotten.

Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023 (its NegGrad+ baseline). Nothing bounds the way up:
with a small ``beta`` or many steps the retained classes go too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kswapctl.methods.base import SHARE, Context, Method, Seen
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Method):
    """Cross-entropy on what is retained, less cross-entropy on what is forgotten."""

    kind = "forget"
    source = "Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023 (its NegGrad+ baseline)"
    ranges: ClassVar = {"beta": SHARE}

    beta: float = 0.8
    """Weight of the retained, in [0, 1]; the forgotten have the rest, negated."""

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """One term a role."""
        kept, gone = (context.task.losses(s.outputs, s.targets).mean() for s in (seen["retain"], seen["forget"]))
        return {"retain": self.beta * kept, "forget": -(1 - self.beta) * gone}
