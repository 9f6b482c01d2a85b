"""Fine-tuning: train on what is wanted alone, and let what is not shown fade. The floor of every comparison.

Catastrophic forgetting does the forgetting: McCloskey & Cohen, Catastrophic Interference in Connectionist Networks,
1989; as an unlearning baseline in Golatkar et al., Eternal Sunshine of the Spotless Net, CVPR 2020.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kswapctl.methods.base import Context, Method, Seen
from kswapctl.spec import Role


@dataclass(frozen=True)
class Learn(Method):
    """Cross-entropy on what is learned alone: how well these adapters can learn, at any price."""

    kind = "learn"
    source = "McCloskey & Cohen, Catastrophic Interference in Connectionist Networks, 1989"

    lr: float = 2e-3
    """Highest learning rate of AdamW for the adapters."""
    steps: int = 120
    """Steps of one cycle, along which the learning rate rises and falls."""
    cycles: int = 1
    """Most cycles; training ends with the first after which the targets hold on the validation part."""

    def passes(self, context: Context) -> Sequence[tuple[Role, ...]]:
        """Only what is learned."""
        return [("learn",)]

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Cross-entropy."""
        return {"learn": context.task.losses(seen["learn"].outputs, seen["learn"].targets).mean()}


@dataclass(frozen=True)
class Forget(Method):
    """Cross-entropy on what is retained alone: what is not shown fades, or not."""

    kind = "forget"
    source = "Golatkar et al., Eternal Sunshine of the Spotless Net, CVPR 2020 (its fine-tuning baseline)"

    def passes(self, context: Context) -> Sequence[tuple[Role, ...]]:
        """Only what is retained."""
        return [("retain",)]

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Cross-entropy."""
        return {"retain": context.task.losses(seen["retain"].outputs, seen["retain"].targets).mean()}
