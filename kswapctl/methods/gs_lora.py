"""Group-sparse LoRA: learn or forget on the feed-forward layers; a penalty can leave whole blocks as they are.

Zhao et al., Continual Forgetting for Pre-trained Vision Models, CVPR 2024 (GS-LoRA); Xing et al., Knowledge
Swapping via Learning and Unlearning, ICML 2025. The preset ``paper`` holds their public code's values. The
default differs: the bound is on each image, which is pushed off all that is forgotten at once, the model before the
operation is distilled, images come in views, and the penalty is off; ``sparsity`` turns it on, as a proximal step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kswapctl.methods.base import POSITIVE, Context, Method, Seen
from kswapctl.methods.terms import any_of, bounded, bounded_mean, distill
from kswapctl.spec import Role
from kswapctl.tasks import Task

PAPER = {
    "blocks": "all",
    "rank": 8,
    "scale": 0.125,
    "lr": 1e-2,
    "head_lr": 0.0,
    "weight_decay": 0.05,
    "epochs": 5,
    "cycles": 1,
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
    ranges: ClassVar = {"temperature": POSITIVE}
    presets: ClassVar = {
        "default": {},
        "fast": {
            "rank": 16,
            "blocks": "last:5",
            "lr": 1e-2,
            "steps": 32,
            "cycles": 1,
            "retain_views": 2,
            "change_views": 2,
            "sparsity": 0.1,
            "distillation": 6.0,
        },
        "thorough": {
            "rank": 16,
            "lr": 1e-2,
            "steps": 900,
            "cycles": 1,
            "check_every": 600,
            "retain_views": 16,
            "change_views": 16,
        },
        "paper": PAPER | {"beta": 1.0, "handicap": 0.0},
    }

    rank: int = 8
    """Rank of the adapters."""
    blocks: str = "all"
    """Which blocks are adapted: all, last:N, or auto: the last ones, as many as the gradient asks for."""
    lr: float = 5e-3
    """Highest learning rate of AdamW for the adapters."""
    steps: int = 150
    """Steps of one cycle, along which the learning rate rises and falls."""
    cycles: int = 2
    """Most cycles; training ends with the first after which the targets hold on the validation part."""
    beta: float = 2.0
    """Weight of the learn loss against the retain loss."""
    distillation: float = 3.0
    """Weight of the distillation from the model before, which gives new classes no probability."""
    temperature: float = 2.0
    """Temperature of the distillation."""

    handicap: float = 1.6
    """Logits that new classes must do without while training, and have in use (Menon et al., ICLR 2021)."""

    def first_bias(self, task: Task) -> float:
        """The handicap: without it a new class would begin that much too low."""
        return self.handicap - task.rarity

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Retain and learn cross-entropy, and distillation."""
        retain, learn = seen["retain"], seen["learn"]
        shift = torch.zeros_like(retain.outputs[0])
        shift[context.known :] = self.first_bias(context.task)
        retained = retain.outputs - shift
        return {
            "retain": context.task.losses(retained, retain.targets).mean(),
            "learn": self.beta * context.task.losses(learn.outputs - shift, learn.targets).mean(),
            "distillation": self.distillation * distill(retained, retain.before, self.temperature),
        }


@dataclass(frozen=True)
class Forget(Method):
    """Cross-entropy and distillation on what is retained; a bounded push away from what is forgotten."""

    kind = "forget"
    source = "Zhao et al., Continual Forgetting for Pre-trained Vision Models, CVPR 2024"
    choices: ClassVar = {"bound_unit": ("ln K", "nats")}
    ranges: ClassVar = {"temperature": POSITIVE}
    presets: ClassVar = {
        "default": {},
        "fast": {"rank": 16, "lr": 6e-3, "steps": 60, "retain_views": 2, "change_views": 2, "sparsity": 0.1},
        "thorough": {},
        "paper": PAPER
        | {
            "bound": 105.0,
            "bound_unit": "nats",
            "per_sample": False,
            "together": False,
            "beta": 0.2,
            "rest": 0.0,
            "learned_weight": 1,
        },
    }

    rank: int = 8
    """Rank of the adapters."""
    blocks: str = "auto"
    """Which blocks are adapted: all, last:N, or auto: the last ones, as many as the gradient asks for."""
    lr: float = 5e-3
    """Highest learning rate of AdamW for the adapters."""
    steps: int = 100
    """Steps of one cycle, along which the learning rate rises and falls."""
    cycles: int = 2
    """Most cycles; training ends with the first after which the targets hold on the validation part."""
    change_views: int = 3
    """Fixed variants of each image to forget."""
    learned_weight: int = 3
    """How often an image of a class learned earlier is drawn, against one of a class the base knew."""
    bound: float = 1.5
    """Forget loss, in ``bound_unit``, above which an image counts as forgotten."""
    bound_unit: str = "ln K"
    """Unit of the bound: ln K or nats."""
    per_sample: bool = True
    """Bound each image's loss; else, as the papers' code, the batch mean."""
    together: bool = True
    """Push an image off every class that is forgotten; else off its own, from where it may go to another of them."""
    beta: float = 3.0
    """Weight of the forget loss against the retain loss."""
    distillation: float = 6.0
    """Weight of the distillation from the model before, on retained images, over the classes that are not forgotten."""
    temperature: float = 2.0
    """Temperature of the distillation."""
    rest: float = 4.0
    """Weight of the distillation on forgotten images, over the classes that are not forgotten."""

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Retain cross-entropy and distillation, and bounded forget loss."""
        retain, forget = seen["retain"], seen["forget"]
        bound = self.bound * (context.chance if self.bound_unit == "ln K" else 1.0)
        if self.together:
            losses = any_of(forget.outputs, context.rows)
        else:
            losses = context.task.losses(forget.outputs, forget.targets)
        kept = torch.ones(forget.outputs.shape[-1], dtype=torch.bool, device=losses.device)
        kept[context.rows] = False
        held = distill(retain.outputs[:, kept], retain.before[:, kept], self.temperature)
        return {
            "retain": context.task.losses(retain.outputs, retain.targets).mean(),
            "forget": self.beta * (bounded if self.per_sample else bounded_mean)(losses, bound),
            "distillation": self.distillation * held,
            "rest": self.rest * distill(forget.outputs[:, kept], forget.before[:, kept], 1.0),
        }
