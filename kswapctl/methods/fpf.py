"""FPF: learn without looking back, then repair only the layers that forgot the most, on a small buffer.

Zhao et al., Does Continual Learning Equally Forget All Parameters?, ICML 2023. The layers that moved furthest for their
size are the sensitive ones. What differs: sensitivity is taken by layer from one stage of learning, where the paper
follows the parameters over epochs and groups them by kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kswapctl.methods.base import SHARE, Context, Method, Seen
from kswapctl.models.lora import Layer
from kswapctl.spec import Role


@dataclass(frozen=True)
class Learn(Method):
    """Learn what is new alone, then fine-tune the layers that moved the most on old and new images."""

    kind = "learn"
    source = "Zhao et al., Does Continual Learning Equally Forget All Parameters?, ICML 2023"
    ranges: ClassVar = {"alone": SHARE, "sensitive": SHARE}

    lr: float = 2e-3
    """Highest learning rate of AdamW for the adapters."""
    alone: float = 0.5
    """Share of a cycle's steps on what is learned alone."""
    sensitive: float = 0.25
    """Share of the layers that are repaired afterwards, in (0, 1]."""

    def passes(self, context: Context) -> Sequence[tuple[Role, ...]]:
        """What is new alone, then both."""
        return [("learn",)] if context.gone_by < self.alone else [("retain", "learn")]

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Cross-entropy of each role that is shown."""
        return {role: context.task.losses(s.outputs, s.targets).mean() for role, s in seen.items()}

    def backward(self, context: Context, losses: Mapping[str, Tensor]) -> None:
        """The gradients; in the second stage, those of the sensitive layers and of the classifier."""
        super().backward(context, losses)
        if context.gone_by < self.alone:
            context.memory.pop("sensitive", None)
            return
        sensitive = context.memory.setdefault("sensitive", most_moved(context.layers, self.sensitive))
        for name, layer in context.layers.items():
            for parameter in (layer.weight, layer.a, layer.b):
                if name not in sensitive and parameter.requires_grad:
                    parameter.grad = None  # a zero would still move by AdamW's momentum


@torch.no_grad()
def most_moved(layers: Mapping[str, Layer], share: float) -> set[str]:
    """The ``share`` of layers whose weights moved the most, over their norm; at least one."""
    moved = {name: (layer.change().norm() / layer.before.norm()).item() for name, layer in layers.items()}
    return set(sorted(moved, key=moved.__getitem__, reverse=True)[: max(1, round(share * len(moved)))])
