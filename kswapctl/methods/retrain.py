"""Retraining: the blocks' weights are drawn anew, and learn only what may be known. The reference of unlearning.

Bourtoule et al., Machine Unlearning, S&P 2021: a model trained without the data is the measure of forgetting it. What
differs: a change is an adapter, so every linear layer inside the blocks starts anew, but the patch embedding, norms,
biases and the old rows of the classifier stay. Ask for all retained images: ``--retain-share 1``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kswapctl.methods.base import Context, Method, Seen
from kswapctl.spec import Role


@dataclass(frozen=True)
class Retrained(Method):
    """Train the blocks from random weights on what may be known."""

    source = "Bourtoule et al., Machine Unlearning, S&P 2021"
    all_layers: ClassVar = True

    blocks: str = "all"
    """Which blocks are adapted: all, last:N, or auto: the last ones, as many as the gradient asks for."""
    forms: ClassVar = ("whole",)
    form: str = "whole"
    """What is trained: whole: the layers' weights, stored as the nearest adapter of this rank."""
    rank: int = 256
    """Rank of the adapters; nothing is lost where a layer's smaller side is no longer than this."""
    lr: float = 1e-3
    """Highest learning rate of AdamW for the layers' weights."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay."""
    steps: int = 1500
    """Steps of one cycle, along which the learning rate rises and falls."""
    cycles: int = 1
    """Most cycles; training ends with the first after which the targets hold on the validation part."""
    check_every: int = 250
    """Steps between looks at the validation part within a cycle."""

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Draw the weights anew, as timm does for transformers."""
        with torch.no_grad():
            for layer in context.layers.values():
                nn.init.trunc_normal_(layer.weight, std=0.02)

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Cross-entropy on each role that is shown."""
        return {role: context.task.losses(s.outputs, s.targets).mean() for role, s in seen.items()}


@dataclass(frozen=True)
class Learn(Retrained):
    """Train the blocks from random weights on the old and the new classes together."""

    kind = "learn"


@dataclass(frozen=True)
class Forget(Retrained):
    """Train the blocks from random weights on the retained classes alone."""

    kind = "forget"

    def passes(self, context: Context) -> list[tuple[Role, ...]]:
        """Only what is retained."""
        return [("retain",)]
