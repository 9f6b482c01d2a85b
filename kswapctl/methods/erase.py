"""Erasure distilled into adapters: every image's feature is moved to where it would be without the forgotten classes.

The targets come from least-squares concept erasure in closed form (Belrose et al., LEACE: Perfect Linear Concept
Erasure in Closed Form, NeurIPS 2023), before the classifier and at a third and two thirds of the network; training
adapters to produce them is ours. Adapters reproduce a target in part only, and squared distance hides what is left
where features vary little: so the distance along the erased directions, in standard deviations, counts once more.
Forgotten images are also moved by one vector common to them all, which keeps the frozen classifier from naming them
and tells nothing of their class.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kswapctl.methods.base import Context, Method, Seen
from kswapctl.models.depths import SHARES
from kswapctl.spec import Role

TOLERANCE, USUAL = 0.01, 0.05
"""Largest covariance of whitened features with a class that is taken for rounding, and the share of the items that such
a class has; for a rarer one it is less, as its covariance falls with its share."""


@dataclass(frozen=True)
class Part:
    """The targets at one depth."""

    eraser: Any
    """Features (N, D) in double precision to those without the concept."""
    directions: Tensor
    """(C, D): what was erased, in units of its standard deviation."""
    spread: Tensor
    """Total variance of the features."""
    push: Tensor
    """(D,) by which forgotten images are moved besides."""

    def distance(self, features: Tensor, before: Tensor, push: bool, focus: float) -> Tensor:
        """Mean squared distance of (B, D) ``features`` to their targets, over the spread, and along what was erased."""
        wanted = self.eraser(before.double()).float()
        missed = features - (wanted + self.push if push else wanted)
        along = (missed @ self.directions.T).square().mean()
        total: Tensor = missed.square().sum(1).mean() / self.spread + focus * along
        return total


@dataclass(frozen=True)
class Forget(Method):
    """Train the adapters to give every image its own features, linearly erased of the forgotten classes."""

    kind = "forget"
    source = "Belrose et al., LEACE: Perfect Linear Concept Erasure in Closed Form, NeurIPS 2023; distillation is ours"
    presets: ClassVar = {"default": {}, "shallow": {"deep": False, "focus": 0.0, "steps": 150}}

    rank: int = 32
    """Rank of the adapters."""
    blocks: str = "all"
    """Which blocks are adapted: all, or last:N."""
    steps: int = 400
    """Steps of one cycle, along which the learning rate rises and falls."""
    change_batch: int = 40
    """Images to forget a step."""
    learned_weight: int = 2
    """How often an image of a class learned earlier is drawn, against one of a class the base knew."""
    margin: float = 3.0
    """How far below the best retained class the forgotten classes' logits are moved, in logits, at the mean."""
    beta: float = 1.0
    """Weight of the forgotten images' distance against the retained ones'."""
    deep: bool = True
    """Erase at a third and two thirds of the network as well, not only before the classifier."""
    early: float = 0.2
    """Weight of each depth below the last: what is spent there is missing before the classifier."""
    focus: float = 0.1
    """Weight of the distance along the erased directions, in squared standard deviations."""

    def watched(self) -> tuple[str, ...]:
        """The depths that are erased besides the last."""
        return tuple(SHARES) if self.deep else ()

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Fit an eraser for each depth on all views of both roles, and choose the common vector."""
        retain, forget = pools["retain"], pools["forget"]
        labels = torch.cat([p.targets.repeat(len(p.features)) for p in (retain, forget)])
        concept = (labels[:, None] == context.rows).double()  # (N, forgotten)
        kept, gone = (p.features.flatten(0, 1).split(context.widths, dim=1) for p in (retain, forget))
        parts = [_fit(torch.cat([k, g]), concept) for k, g in zip(kept, gone, strict=True)]
        parts[-1].push.copy_(_common_vector(parts[-1].eraser(gone[-1].double()).float(), context, self.margin))
        context.memory["parts"] = parts

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Squared distance to the erased features, over the features' total variance, by role; summed over depths."""
        return {
            "retain": self._distance(context, seen["retain"], push=False),
            "forget": self.beta * self._distance(context, seen["forget"], push=True),
        }

    def _distance(self, context: Context, seen: Seen, push: bool) -> Tensor:
        now, before = (f.split(context.widths, dim=1) for f in (seen.features, seen.before_features))
        parts = zip(context.memory["parts"], now, before, strict=True)
        *early, last = [part.distance(n, b, push, self.focus) for part, n, b in parts]
        return torch.stack([last, *(self.early * distance for distance in early)]).sum()


def _fit(features: Tensor, concept: Tensor) -> Part:
    """The eraser of ``concept`` (N, C) from ``features`` (N, D)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package compiles one function in a way that torch has deprecated
        from concept_erasure import LeaceEraser
    rarest = concept.mean(0).min().item()
    eraser = LeaceEraser.fit(features.double(), concept, svd_tol=TOLERANCE * min(1.0, rarest / USUAL))
    return Part(eraser, eraser.proj_right.float(), features.var(0).sum(), torch.zeros_like(features[0]))


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
