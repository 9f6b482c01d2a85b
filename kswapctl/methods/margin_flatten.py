"""Margin flattening: the logits of the forgotten become level, while the retained loss is held under a bound.

After Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models, 2025, carried over to classes:
the constraint on the retained is hard, with a multiplier that rises while it is broken. What differs: the levelness is
the variance of an image's logits, and the bound is the retained loss before plus a slack.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kswapctl.methods.base import Context, Method, Seen
from kswapctl.methods.terms import spread
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Method):
    """Level the logits of the forgotten, subject to a bound on the retained loss: a primal-dual method."""

    kind = "forget"
    source = "Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models, 2025"

    flatten: float = 3.0
    """Weight of the variance of the forgotten images' logits."""
    slack: float = 0.02
    """How far the retained loss may rise above that before, in nats."""
    first: float = 5.0
    """The multiplier of the constraint at the start."""
    dual_lr: float = 1.0
    """How fast the multiplier rises while the constraint is broken, and falls while it holds, a nat a step."""

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """The bound on the retained loss."""
        pool = pools["retain"]
        targets = pool.targets.repeat(len(pool.outputs))
        before = context.task.losses(pool.outputs.flatten(0, 1), targets).mean().item()
        context.memory.update(bound=before + self.slack, multiplier=self.first)

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """The objective, and the constraint times its multiplier, which then moves."""
        retain = context.task.losses(seen["retain"].outputs, seen["retain"].targets).mean()
        held = context.memory["multiplier"]
        context.memory["multiplier"] = raised(held, retain.item() - context.memory["bound"], self.dual_lr)
        return {"flatten": self.flatten * spread(seen["forget"].outputs), "retain": held * retain}


def raised(multiplier: float, excess: float, rate: float) -> float:
    """The multiplier after a step of dual ascent: never negative."""
    return max(0.0, multiplier + rate * excess)
