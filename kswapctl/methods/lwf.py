"""LwF: the old model's answers on the new images are kept, so that no old image is needed.

Li & Hoiem, Learning without Forgetting, TPAMI 2018. The public code of Zhao et al. 2024 takes the logarithm of
log-probabilities and sets the resulting NaN to zero, so its distillation is nothing; here it is what the paper means.
To forget, the answers over the classes that stay are kept. ``replay=0`` is the paper's own setting without old images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kswapctl.methods.base import POSITIVE, Context, Seen
from kswapctl.methods.plain import Plain
from kswapctl.methods.terms import distill
from kswapctl.spec import Role


@dataclass(frozen=True)
class Distilled(Plain):
    """Plain training with the old answers distilled on the images that change."""

    source = "Li & Hoiem, Learning without Forgetting, TPAMI 2018"
    ranges: ClassVar = {"temperature": POSITIVE}

    distillation: float = 1.0
    """Weight of the distillation on the images to learn or forget."""
    temperature: float = 2.0
    """Temperature of the distillation."""

    def hold(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Distillation over the classes that the old model knew and that stay."""
        change = seen[self.kind]
        old = context.retained[context.retained < change.before.shape[1]]
        held = distill(change.outputs[:, old], change.before[:, old], self.temperature)
        return {"distillation": self.distillation * held}


@dataclass(frozen=True)
class Learn(Distilled):
    """Learn while the old model's answers on the new images are kept."""

    kind = "learn"


@dataclass(frozen=True)
class Forget(Distilled):
    """Train the forgotten towards random other labels, keeping how the other classes compare."""

    kind = "forget"
