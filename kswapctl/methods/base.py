"""The protocol of a method: hyper-parameters as fields, losses as named terms; never optimiser, device or files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, get_type_hints

import torch
from torch import Tensor, nn

from kswapctl.errors import UsageError, nearest
from kswapctl.methods.terms import group_sparsity
from kswapctl.models.lora import Layer
from kswapctl.spec import Kind, Role
from kswapctl.tasks import Task

VIEWS: dict[Role, int] = {"learn": 16, "forget": 4}
"""Variants of each image that changes: what is learned must be known again elsewhere, of whatever few images."""

COUNT, SHARE, AMOUNT, POSITIVE = (1, math.inf), (0, 1), (0, math.inf), (1e-3, math.inf)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("rank", "steps", "cycles", "check_every", "retain_batch", "change_batch"), COUNT),
    **dict.fromkeys(("retain_views", "learned_weight"), COUNT),
    **dict.fromkeys(("epochs", "change_views", "lr", "head_lr", "weight_decay", "sparsity", "noise"), AMOUNT),
    "view_strength": SHARE,
}
"""The least and the most of the hyper-parameters that every gradient method shares."""


OF_STEPS = ("lr", "head_lr", "weight_decay", "epochs", "check_every", "sparsity", "proximal", "noise")
"""Those that say how a step is taken, or how many are."""


@dataclass(frozen=True)
class Seen:
    """What the network made of one role's B items in a batch, now and before the operation.

    An item is what the task says: an image, an object, a pixel.
    """

    targets: Tensor
    """(B,) columns of the outputs: rows of the classifier, after those that stand for no class."""
    features: Tensor
    """(B, D), the classifier's input; (B, E + D) behind the depths that the method watches, if any."""
    outputs: Tensor
    """(B, K) logits; K counts columns being learned."""
    before_features: Tensor
    """The same of the model before the operation, on the same view of the image."""
    before: Tensor
    """(B, K_known) logits of the model before the operation."""


@dataclass
class Context:
    """What stays the same between steps, and where training stands."""

    task: Task
    """Turns outputs into losses."""
    known: int
    """Columns of the outputs before the operation."""
    chance: float
    """The task's loss of a model that knows nothing, in nats: ln K where one of K classes is the answer."""
    rows: Tensor
    """(C,) columns of the outputs whose classes are learned or forgotten."""
    retained: Tensor
    """(R,) columns of the outputs whose classes must stay."""
    classifier: nn.Module
    """(B, D) features to (B, K) logits; frozen, but for new rows."""
    groups: dict[str, list[nn.Parameter]]
    """Trained parameters by block."""
    layers: dict[str, Layer] = field(default_factory=dict)
    """The adapted layers by path: weight, and how far it has moved."""
    forward: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    """A pool's prepared activations to (B, D) features and (B, K) logits, as the model is now."""
    widths: tuple[int, ...] = ()
    """Columns of the features by depth: those that the method watches, and the classifier's input."""
    gone: Tensor = field(default_factory=lambda: torch.empty(0))
    """(C,) rows of the classifier whose classes are forgotten; none while learning."""
    step: int = 1
    """The step being taken, from 1."""
    length: int = 1
    """Steps of one cycle."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What ``prepare`` keeps for ``loss``: teachers, importances, prototypes."""

    @property
    def gone_by(self) -> float:
        """Share of the cycle's steps before this one, in [0, 1)."""
        return (self.step - 1) % self.length / self.length


@dataclass(frozen=True)
class Method:
    """The hyper-parameters every gradient method shares; a method adds its own and its loss."""

    kind: ClassVar[Kind]
    """Whether it learns or forgets."""
    source: ClassVar[str]
    """The paper it comes from."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    """Named sets of values that differ from the fields' defaults."""

    all_layers: ClassVar[bool] = False
    """Whether it changes every linear layer inside the chosen blocks, not only the feed-forward ones."""
    forms: ClassVar[tuple[str, ...]] = ("adapter", "whole")
    """What can be trained: see ``form``."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """The least and the most of hyper-parameters of its own."""
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The words that a hyper-parameter of its own may be."""
    stepped: ClassVar[bool] = True
    """Whether steps are taken; else the change is a closed form."""

    rank: int = 8
    """Rank of the adapters."""
    scale: float = 1.0
    """The weight change is scale * B @ A."""
    blocks: str = "auto"
    """Which blocks are adapted: all, last:N, or auto: the last ones, as many as the gradient asks for."""
    learned_weight: int = 1
    """How often an image of a class learned earlier is drawn, against one of a class the base knew."""
    lr: float = 4e-3
    """Highest learning rate of AdamW for the adapters."""
    head_lr: float = 1e-2
    """The same for the rows of classes being learned."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay of the adapters."""
    steps: int = 100
    """Steps of one cycle, along which the learning rate rises and falls."""
    epochs: int = 0
    """Instead of ``steps``, where positive: passes over the retained images that make a cycle."""
    cycles: int = 2
    """Most cycles; training ends with the first after which the targets hold on the validation part."""
    check_every: int = 50
    """Steps between looks at the validation part within a cycle."""
    retain_batch: int = 40
    """Retained images a step."""
    change_batch: int = 24
    """Images to learn or forget a step."""
    retain_views: int = 6
    """Fixed variants of each retained image, the untouched one included; 1 means no augmentation.

    With boxes at most 2, with masks 4, unless a setting or a preset names a number.
    """
    change_views: int = 0
    """Fixed variants of each image to learn or forget; 0: 16 to learn, 4 to forget (with boxes 2, masks 4)."""
    view_strength: float = 0.5
    """How far the variants go, in [0, 1]."""
    sparsity: float = 0.0
    """Group-sparse penalty: the share of the largest block's gradient below which a block stays exactly as it is.

    Where it is no proximal step: the weight of the sum over blocks of the norm of their adapter (Zhao et al. 2024).
    """
    proximal: bool = True
    """Apply the penalty as a proximal step, which makes unused blocks exactly zero; else as a loss term."""
    form: str = "adapter"
    """What is trained: adapter, or whole: the layers' weights, stored as the nearest adapter of this rank."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the trained weights in each step (NVRM, Xie et al. 2021)."""

    def __post_init__(self) -> None:
        """Values are in their ranges."""
        for name, (least, most) in {**RANGES, **self.ranges}.items():
            value = getattr(self, name)
            if not least <= value <= most:
                bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise UsageError(f"{name} must be {bounds}, not {value:g}")
        for name, known in {"form": self.forms, **self.choices}.items():
            if getattr(self, name) not in known:
                raise UsageError(f"no {name} {getattr(self, name)!r} in this method", f"{name} is {' or '.join(known)}")

    @classmethod
    def configure(cls, preset: str, settings: Mapping[str, str]) -> Self:
        """The method with a preset's values and then ``settings`` (text, checked against each field's type)."""
        if preset not in cls.presets:
            raise UsageError(f"no preset {preset!r}", nearest(preset, cls.presets))
        hints = get_type_hints(cls)
        types = {f.name: hints[f.name].__name__ for f in dataclasses.fields(cls)}
        values = dict(cls.presets[preset])
        for name, text in settings.items():
            if name not in types:
                raise UsageError(f"no hyper-parameter {name!r} in this method", nearest(name, types))
            if why := cls.idle().get(name):
                raise UsageError(f"{name} does nothing in this method", f"it {why}: leave it out")
            values[name] = _parse(name, text, types[name])
        return cls(**values)

    @classmethod
    def idle(cls) -> dict[str, str]:
        """Hyper-parameters of every method that do nothing in this one, and why: what it does not do."""
        if not cls.stepped:
            return dict.fromkeys(OF_STEPS, "takes no step")
        return {"head_lr": "adds no row that could be trained"} if cls.kind == "forget" else {}

    def steps_of(self, retained: int, task: Task) -> int:
        """Steps of one cycle over ``retained`` images of ``task``."""
        return self.epochs * -(-retained // self.batch_of("retain", task)) if self.epochs else self.steps * task.pace

    def batch_of(self, role: Role, task: Task) -> int:
        """Images of ``role`` in a step of ``task``."""
        return max(1, round(task.share * (self.retain_batch if role == "retain" else self.change_batch)))

    def views_of(self, role: Role) -> int:
        """Variants of each image of ``role``."""
        return self.retain_views if role == "retain" else self.change_views or VIEWS[role]

    def first_bias(self, task: Task) -> float:
        """What is added to the bias that a new class of ``task`` is given before the first step, in logits."""
        return 0.0

    def watched(self) -> tuple[str, ...]:
        """Depths of the network (names in ``models.depths.SHARES``) whose pooled features the method wants as well."""
        return ()

    def prepare(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """Before the first step: teachers, importances, prototypes go to ``context.memory``."""

    def passes(self, context: Context) -> Sequence[tuple[Role, ...]]:
        """The roles whose images are joined, for each pass of the step that ``context`` tells."""
        return [("retain", self.kind)] if self.stepped else []

    def loss(self, context: Context, seen: Mapping[Role, Seen]) -> dict[str, Tensor]:
        """Named scalars whose sum is minimised."""
        raise NotImplementedError

    def penalty(self, context: Context) -> dict[str, Tensor]:
        """The group-sparse penalty where it is a term of the loss; nothing where it is a proximal step, or off."""
        if self.proximal or not self.sparsity or self.form == "whole":
            return {}
        return {"group sparsity": self.sparsity * group_sparsity(context.groups)}

    def backward(self, context: Context, losses: Mapping[str, Tensor]) -> None:
        """Leave the gradients of a step in the parameters; a method may mask or project them."""
        torch.stack(list(losses.values())).sum().backward()

    def finish(self, context: Context, pools: Mapping[Role, Any]) -> None:
        """At the end of each cycle, before the validation part decides: edits in closed form."""


def _parse(name: str, text: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (KeyError, ValueError) as error:
        raise UsageError(f"{name}={text} is not a value of type {kind}") from error
