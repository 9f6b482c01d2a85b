"""Erasure distilled into adapters: every image's feature is moved to where it would be without the forgotten classes.

The targets come from least-squares concept erasure in closed form (Belrose et al., LEACE: Perfect Linear Concept
Erasure in Closed Form, NeurIPS 2023); training adapters to produce them is ours. Forgotten images are also moved by
one vector common to them all, which keeps the frozen classifier from naming them and tells nothing of their class.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kswapctl.methods.base import Context, Method, Seen
from kswapctl.spec import Role


@dataclass(frozen=True)
class Forget(Method):
    """Train the adapters to give every image its own feature, linearly erased of the forgotten classes."""

    kind = "forget"
    source = "Belrose et al., LEACE: Perfect Linear Concept Erasure in Closed Form, NeurIPS 2023; distillation is ours"
    presets: ClassVar = {"default": {}}

    rank: int = 32
    """Rank of the adapters."""
    blocks: str = "all"
    """Which blocks are adapted: all, or last:N."""
    change_batch: int = 40
    """Images to forget a step."""
    learned_weight: int = 2
    """How often an image of a class learned earlier is drawn, against one of a class the base knew."""
    margin: float = 3.0
    """How far below the best retained class the forgotten classes' logits are moved, in logits, at the mean."""
    beta: float = 1.0
    """Weight of the forgotten images' distance against the retained ones'."""

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Fit the eraser on all views of both roles, and choose the common vector."""
        retain, forget = pools["retain"], pools["forget"]
        features = torch.cat([p.features.flatten(0, 1) for p in (retain, forget)])  # (N, D)
        labels = torch.cat([p.targets.repeat(len(p.features)) for p in (retain, forget)])
        concept = (labels[:, None] == context.rows).double()  # (N, forgotten)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package compiles one function in a way that torch has deprecated
            from concept_erasure import LeaceEraser
        eraser = LeaceEraser.fit(features.double(), concept)
        context.memory["eraser"] = eraser
        context.memory["spread"] = features.var(0).sum()
        erased = eraser(forget.features.flatten(0, 1).double()).float()
        context.memory["push"] = _common_vector(erased, context, self.margin)

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Squared distance to the erased features, over the features' total variance, by role."""
        eraser, spread = context.memory["eraser"], context.memory["spread"]
        retain, forget = seen["retain"], seen["forget"]
        kept = eraser(retain.before_features.double()).float()
        gone = eraser(forget.before_features.double()).float() + context.memory["push"]
        return {
            "retain": (retain.features - kept).square().sum(1).mean() / spread,
            "forget": self.beta * (forget.features - gone).square().sum(1).mean() / spread,
        }


@torch.no_grad()
def _common_vector(erased: Tensor, context: Context, margin: float) -> Tensor:
    """(D,) shortest vector that lowers all forgotten logits alike, to ``margin`` below the rest at the mean.

    ``erased`` is (N, D). The classifier is frozen, so its rows tell the direction.
    """
    logits = context.classifier(erased)
    gone = logits[:, context.rows]
    kept = logits.clone()
    kept[:, context.rows] = -torch.inf
    distance = (gone.max(1).values - kept.max(1).values).mean() + margin
    rows = torch.as_tensor(context.classifier.weight)[context.rows]  # (forgotten, D)
    step = torch.linalg.pinv(rows) @ torch.ones(len(rows), device=rows.device)
    push: Tensor = -distance.clamp_min(0.0) * step
    return push
