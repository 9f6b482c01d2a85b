"""Group-sparse LoRA: learn or forget on the feed-forward layers, with as few blocks changed as possible.

Zhao et al., Continual Forgetting for Pre-trained Vision Models, CVPR 2024 (GS-LoRA); Xing et al., Knowledge
Swapping via Learning and Unlearning, ICML 2025. The preset ``paper`` holds their public code's values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kswapctl.methods.base import Context, Method, Seen
from kswapctl.methods.terms import bounded, bounded_mean, distill, group_sparsity
from kswapctl.spec import Role

PAPER = {
    "rank": 8,
    "scale": 0.125,
    "lr": 1e-2,
    "weight_decay": 0.05,
    "steps": 160,
    "retain_batch": 80,
    "change_batch": 80,
    "retain_views": 1,
    "change_views": 1,
    "sparsity": 0.005,
    "proximal": False,
    "distillation": 0.0,
}


@dataclass(frozen=True)
class Learn(Method):
    """Cross-entropy on what is learned and on what is retained, and distillation from the model before."""

    kind = "learn"
    source = "Xing et al., Knowledge Swapping via Learning and Unlearning, ICML 2025"
    presets: ClassVar = {"default": {}, "paper": PAPER}

    distillation: float = 1.0
    """Weight of the distillation from the model before, on known classes."""
    temperature: float = 2.0
    """Temperature of the distillation."""
    beta: float = 1.0
    """Weight of the learn loss against the retain loss."""

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Retain and learn cross-entropy, distillation of the known logits, and the penalty where it is a term."""
        retain, learn = seen["retain"], seen["learn"]
        return {
            "retain": context.task.losses(retain.outputs, retain.targets).mean(),
            "learn": self.beta * context.task.losses(learn.outputs, learn.targets).mean(),
            "distillation": self.distillation * distill(retain.outputs, retain.before, self.temperature),
        } | _penalty(self, context)


@dataclass(frozen=True)
class Forget(Method):
    """Cross-entropy and distillation on what is retained; a bounded push away from what is forgotten."""

    kind = "forget"
    source = "Zhao et al., Continual Forgetting for Pre-trained Vision Models, CVPR 2024"
    presets: ClassVar = {
        "default": {},
        "paper": PAPER | {"bound": 105.0, "bound_unit": "nats", "per_sample": False, "beta": 0.2},
    }

    bound: float = 2.0
    """Forget loss, in units of ln K, above which an image counts as forgotten."""
    bound_unit: str = "ln K"
    """Unit of the bound: ln K or nats."""
    per_sample: bool = True
    """Bound each image's loss; else, as the papers' code, the batch mean."""
    beta: float = 1.0
    """Weight of the forget loss against the retain loss."""
    distillation: float = 1.0
    """Weight of the distillation from the model before, on retained images."""
    temperature: float = 2.0
    """Temperature of the distillation."""

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Retain cross-entropy and distillation, bounded forget loss, and the penalty where it is a term."""
        retain, forget = seen["retain"], seen["forget"]
        bound = self.bound * (context.chance if self.bound_unit == "ln K" else 1.0)
        losses = context.task.losses(forget.outputs, forget.targets)
        return {
            "retain": context.task.losses(retain.outputs, retain.targets).mean(),
            "forget": self.beta * (bounded if self.per_sample else bounded_mean)(losses, bound),
            "distillation": self.distillation * distill(retain.outputs, retain.before, self.temperature),
        } | _penalty(self, context)


def _penalty(method: Method, context: Context) -> dict[str, Tensor]:
    if method.proximal or not method.sparsity:
        return {}
    return {"sparsity": method.sparsity * group_sparsity(context.groups)}
