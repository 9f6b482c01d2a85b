"""LAF: no label is used; features of the forgotten leave the place where an autoencoder of them expects them.

Shen et al., Label-Agnostic Forgetting: A Supervision-Free Unlearning in Deep Models, ICLR 2024. Two variational
autoencoders, of the retained and of the forgotten features, tell where each belong; a contrastive term keeps every
retained feature at its old place and off the forgotten ones'. What differs: the push is bounded, so that it ends, and
both terms are taken in one step. ``repair`` above zero adds labels of the retained: the paper's LAF+R.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from kswapctl.methods.base import AMOUNT, COUNT, POSITIVE, Context, Method, Seen
from kswapctl.methods.terms import bounded, contrast
from kswapctl.methods.vae import FeatureAutoencoder
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Method):
    """Push forgotten features off their autoencoder, keep retained ones on theirs and at their old place."""

    kind = "forget"
    source = "Shen et al., Label-Agnostic Forgetting: A Supervision-Free Unlearning in Deep Models, ICLR 2024"
    ranges: ClassVar = {"temperature": POSITIVE, "code": COUNT, "autoencoder_steps": AMOUNT}

    push: float = 1.0
    """Weight of the push off the forgotten features' autoencoder."""
    push_bound: float = 4.0
    """Distance, in units of the features' variance, beyond which a forgotten feature is left alone."""
    keep: float = 1.0
    """Weight of the retained features' distance from their autoencoder."""
    align: float = 1.0
    """Weight of the contrastive term."""
    temperature: float = 0.1
    """Temperature of the cosines in the contrastive term."""
    repair: float = 0.0
    """Weight of the cross-entropy on retained images; the method itself uses no label."""
    code: int = 32
    """Width of the autoencoders' code."""
    autoencoder_steps: int = 400
    """Steps that each autoencoder is trained for."""

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Train an autoencoder of each role's features."""
        for role, pool in pools.items():
            features = pool.features.flatten(0, 1)
            context.memory[role] = FeatureAutoencoder(features, self.code).fit(features, self.autoencoder_steps)

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Push, keep, align, and repair where it is asked for."""
        retain, forget = seen["retain"], seen["forget"]
        aligned = contrast(retain.features, retain.before_features, forget.before_features, self.temperature)
        return {
            "push": self.push * bounded(context.memory["forget"].distance(forget.features), self.push_bound),
            "keep": self.keep * context.memory["retain"].distance(retain.features).mean(),
            "align": self.align * aligned,
            "repair": self.repair * context.task.losses(retain.outputs, retain.targets).mean(),
        }
