"""l1-sparse: fine-tuning on what is retained under an L1 penalty; a sparser model forgets more easily.

Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023: the penalty falls linearly to zero along the
way, as in their best schedule. What differs: only the adapted layers are penalised, and the change is stored as the
nearest adapter, so the zeros themselves are not kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kswapctl.methods.base import Context, Method, Seen
from kswapctl.methods.terms import magnitude
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Method):
    """Cross-entropy on what is retained, and the weights' L1 norm with a weight that falls to zero."""

    kind = "forget"
    source = "Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023"

    blocks: str = "all"
    """Which blocks are adapted: all, last:N, or auto: the last ones, as many as the gradient asks for."""
    form: str = "whole"
    """What is trained: adapter, or whole: the layers' weights, stored as the nearest adapter of this rank."""
    rank: int = 64
    """Rank of the adapters that the change is stored in."""
    lr: float = 5e-4
    """Highest learning rate of AdamW for the layers' weights."""
    gamma: float = 2e-4
    """Weight of the L1 norm at the first step of a cycle."""

    def passes(self, context: Context) -> Sequence[tuple[Role, ...]]:
        """Only what is retained."""
        return [("retain",)]

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Cross-entropy and the fading penalty."""
        return {
            "retain": context.task.losses(seen["retain"].outputs, seen["retain"].targets).mean(),
            "sparsity": self.gamma * (1 - context.gone_by) * magnitude(context.layers),
        }
