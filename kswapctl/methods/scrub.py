"""SCRUB: away from the teacher on what is forgotten, towards it on what is retained, in turns; and SCRUB-S.

Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023, Algorithm 1: while the forgotten still move,
each round has a step away and a step back; the last rounds have only steps back. SCRUB-S, as in the code that Zhao et
al. 2024 compare with, also holds the weights near their own running mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kswapctl.methods.base import POSITIVE, Context, Method, Seen
from kswapctl.methods.terms import distill
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Method):
    """Steps away from the old answers on the forgotten, and steps towards them on the retained."""

    kind = "forget"
    source = "Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023"
    ranges: ClassVar = {"temperature": POSITIVE}

    away_share: float = 0.5
    """Share of a cycle's steps that also move away; the rest only repair."""
    temperature: float = 4.0
    """Temperature of both divergences."""
    alpha: float = 1.0
    """Weight of the divergence on retained images."""
    gamma: float = 1.0
    """Weight of the cross-entropy on retained images."""

    def passes(self, context: Context) -> Sequence[tuple[Role, ...]]:
        """Away and back, then only back."""
        return [("forget",), ("retain",)] if context.gone_by < self.away_share else [("retain",)]

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """The divergence, negated on what is forgotten."""
        if "forget" in seen:
            return {"away": -distill(seen["forget"].outputs, seen["forget"].before, self.temperature)}
        retain = seen["retain"]
        return {
            "towards": self.alpha * distill(retain.outputs, retain.before, self.temperature),
            "retain": self.gamma * context.task.losses(retain.outputs, retain.targets).mean(),
        }


@dataclass(frozen=True)
class Smoothed(Forget):
    """SCRUB with the weights held near their own running mean."""

    source = "Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023 (SCRUB-S in Zhao et al., CVPR 2024)"

    smoothing: float = 0.001
    """Weight of the distance between the trained weights and their running mean."""
    decay: float = 0.9
    """Of the running mean, a step."""

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """SCRUB's terms and the distance to the mean, which moves with every step."""
        trained = [p for group in context.groups.values() for p in group]
        means = context.memory.setdefault("means", [p.detach().clone() for p in trained])
        squares = torch.stack([(p - m).square().sum() for p, m in zip(trained, means, strict=True)]).sum()
        for parameter, mean in zip(trained, means, strict=True):
            mean.lerp_(parameter.detach(), 1 - self.decay)
        return super().loss(context, seen) | {"smoothing": self.smoothing * (squares + 1e-12).sqrt()}
