"""SSD: weights that matter far more to the forgotten than to everything are dampened, without training.

Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening, AAAI 2024, Eq. 4 and 5.
What differs: only the adapted layers are dampened, and harder by default, for they are few; the whole set's Fisher
information is made of the rehearsed and the forgotten images by their number of classes; the change is stored as the
nearest adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kswapctl.errors import DivergedError
from kswapctl.methods.base import AMOUNT, COUNT, Context, Method
from kswapctl.methods.importance import log_loss, squared_gradients
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Method):
    """Dampen the weights whose Fisher information of the forgotten exceeds that of everything."""

    kind = "forget"
    source = "Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening, AAAI 2024"
    stepped = False
    ranges: ClassVar = {"strength": AMOUNT, "importance_images": COUNT}

    blocks: str = "all"
    """Which blocks are adapted: all, last:N, or auto: the last ones, as many as the gradient asks for."""
    forms: ClassVar = ("whole",)
    form: str = "whole"
    """What is changed: whole: the layers' weights, stored as the nearest adapter of this rank."""
    rank: int = 256
    """Rank of the adapters that the change is stored in."""
    steps: int = 1
    """No step is taken: one closed-form edit."""
    cycles: int = 1
    """Times that the edit is made."""
    alpha: float = 1.5
    """Dampened are weights whose importance to the forgotten is this many times that to everything."""
    strength: float = 0.1
    """Lambda of the paper: a weight is multiplied by strength * everything / forgotten, at most 1."""
    importance_images: int = 200
    """Most images of each role from which the importance is taken."""

    def finish(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Measure the importances and dampen."""
        share = len(context.rows) / (len(context.rows) + len(context.retained))
        if self.alpha * share >= 1:
            raise DivergedError(
                f"alpha={self.alpha:g} dampens nothing where {share:.0%} of the classes are forgotten",
                f"it must be below {1 / share:.3g}: --set alpha=1",
            )
        gone, kept = (
            squared_gradients(context, pools[role], log_loss, self.importance_images) for role in ("forget", "retain")
        )
        with torch.no_grad():
            for name, layer in context.layers.items():
                everything = share * gone[name] + (1 - share) * kept[name]
                layer.weight.mul_(dampening(gone[name], everything, self.alpha, self.strength))


def dampening(forget: Tensor, everything: Tensor, alpha: float, strength: float) -> Tensor:
    """The factor on each weight, in [0, 1]: below 1 where ``forget`` exceeds ``alpha`` times ``everything``."""
    factor = (strength * everything / forget.clamp_min(1e-30)).clamp_max(1.0)
    return torch.where(forget > alpha * everything, factor, torch.ones_like(factor))
