"""What to do, to which model, with which data: plain frozen values that travel between the rooms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kswapctl.errors import UsageError, as_typed, nearest

Kind = Literal["learn", "forget"]
Role = Literal["retain", "learn", "forget"]
Depth = Literal["shallow", "deep"]

DEFAULT_METHOD = "gs-lora"
DEPTHS: dict[str, str] = {"shallow": DEFAULT_METHOD, "deep": "erase"}
"""How far forgetting goes to the method that goes there: what the model says, or what its features hold as well."""


def method_at(depth: str, method: str = "") -> str:
    """The method that forgets to ``depth``; ``method``, where it is named, must be that one. Without either, the usual.

    An unknown depth and a method that contradicts it are a :class:`UsageError`.
    """
    if not depth:
        return method or DEFAULT_METHOD
    if depth not in DEPTHS:
        raise UsageError(f"no depth {depth!r}", nearest(depth, DEPTHS))
    if method not in {"", DEPTHS[depth]}:
        raise UsageError(f"depth {depth} is the method {DEPTHS[depth]}, not {method}", "say one of the two")
    return DEPTHS[depth]


def listed(names: Iterable[str]) -> str:
    """Names as the command line takes them."""
    return ", ".join(map(as_typed, names))


def named(classes: Sequence[str]) -> str:
    """Classes as a text, four of them by name."""
    return listed(classes[:4]) + (f" and {len(classes) - 4} more" if len(classes) > 4 else "")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input, in timm's terms."""

    input_size: tuple[int, int, int]
    """Channels, height, width of one input."""
    mean: tuple[float, ...]
    """Per channel, subtracted from values in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, divided by after the mean."""
    interpolation: str = "bicubic"
    """Resampling filter of the resize."""
    crop_pct: float = 1.0
    """Share of the resized image's side that the centre crop keeps, in (0, 1]."""
    crop_mode: str = "center"
    """timm's crop mode: center, squash or border."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """The reverse of :meth:`to_json`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**fields)


@dataclass(frozen=True)
class ModelSpec:
    """Everything but the weights: enough to build the network again."""

    architecture: str
    """timm's model name, or ``transformers.`` and a model type."""
    arguments: dict[str, Any]
    """What the network is built with besides the number of classes, e.g. ``img_size`` of ``timm.create_model``."""
    classes: tuple[str, ...]
    """Class names in the order of the classifier's rows."""
    preprocessing: Preprocessing
    """How images become inputs."""
    task: str = "classification"
    """What the labels mean."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads."""
        return {
            "architecture": self.architecture,
            "arguments": self.arguments,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_json(),
            "task": self.task,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelSpec:
        """The reverse of :meth:`to_json`."""
        return cls(
            architecture=value["architecture"],
            arguments=dict(value["arguments"]),
            classes=tuple(value["classes"]),
            preprocessing=Preprocessing.from_json(value["preprocessing"]),
            task=value.get("task", "classification"),
        )


@dataclass(frozen=True)
class Knowledge:
    """What one version knows: its classifier's rows, and which of them were learned or forgotten when.

    Depth is the position in the stack, from 1, of the operation that learned or forgot a class.
    """

    classes: tuple[str, ...]
    """Class names in the order of the classifier's rows; forgotten classes keep their row."""
    learned: dict[str, int] = field(default_factory=dict)
    """Class name to the depth at which it was learned."""
    forgotten: dict[str, int] = field(default_factory=dict)
    """Class name to the depth at which it was forgotten."""
    sources: tuple[str, ...] = ()
    """Data sources the stack was trained with, in order; ``eval`` reads their test parts."""

    @property
    def known(self) -> tuple[str, ...]:
        """Classes the version should still recognise."""
        return tuple(c for c in self.classes if c not in self.forgotten)

    def sets(self) -> dict[str, tuple[str, ...]]:
        """Classes by what they are now: retain, learned, forgotten, and forgotten by an earlier operation."""
        latest = max(self.forgotten.values(), default=0)
        return {
            "retain": tuple(c for c in self.known if c not in self.learned),
            "learned": tuple(c for c in self.known if c in self.learned),
            "forgotten": tuple(c for c, depth in self.forgotten.items() if depth == latest),
            "forgotten earlier": tuple(c for c, depth in self.forgotten.items() if depth != latest),
        }

    def after(self, change: Change, depth: int) -> Knowledge:
        """Knowledge once ``change`` is made at ``depth``; unknown names to learn append rows."""
        made = dict.fromkeys(change.classes, depth)
        sources = tuple(dict.fromkeys(n for n in (*self.sources, change.source, change.retain_source) if n))
        if change.kind == "forget":
            return Knowledge(self.classes, self.learned, {**self.forgotten, **made}, sources)
        rows = tuple(dict.fromkeys((*self.classes, *change.classes)))
        forgotten = {name: at for name, at in self.forgotten.items() if name not in made}
        return Knowledge(rows, {**self.learned, **made}, forgotten, sources)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads."""
        return {
            "classes": list(self.classes),
            "learned": self.learned,
            "forgotten": self.forgotten,
            "sources": list(self.sources),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Knowledge:
        """The reverse of :meth:`to_json`."""
        return cls(
            classes=tuple(value["classes"]),
            learned=dict(value["learned"]),
            forgotten=dict(value["forgotten"]),
            sources=tuple(value["sources"]),
        )


@dataclass(frozen=True)
class Targets:
    """The outcome the user asks for; training stops when the validation part meets it."""

    forget: float = 0.01
    """Highest accuracy left on the forget set, in [0, 1]."""
    retain_drop: float = 0.01
    """Largest loss of accuracy on the retain set, in [0, 1]."""
    learn: float = 0.95
    """Lowest accuracy on the learn set, in [0, 1]."""


MOST_SEED = 2**32 - 1
"""The largest seed: others are made from it, and what draws takes 64 bits."""
MARKED_LEAST = 100
"""Images of each known class to show again, where they have boxes or masks, and a share would be fewer."""


@dataclass(frozen=True)
class Rehearsal:
    """How much of what must stay is shown again during an operation."""

    share: float = 0.1
    """Share of each known class's training images, in [0, 1]: one image at least, ``MARKED_LEAST`` of marked ones."""
    per_class: int | None = None
    """Instead of a share: this many images of each known class."""
    validation: float = 0.1
    """Share of each class's training images cut off to decide when to stop, in (0, 1)."""


@dataclass(frozen=True)
class Change:
    """One learn or forget operation, as asked for."""

    kind: Kind
    """Whether classes come or go."""
    classes: tuple[str, ...]
    """The classes to learn or forget; for learn, empty means every class of the data not yet known."""
    source: str
    """Where the images are: folder, manifest, or ``hf:`` dataset."""
    retain_source: str = ""
    """Where the images of what must stay are; empty means the same source, then those used before."""
    method: str = DEFAULT_METHOD
    """A name in ``kswapctl methods``."""
    preset: str = "default"
    """Which of the method's sets of hyper-parameters to start from."""
    settings: dict[str, str] = field(default_factory=dict)
    """Hyper-parameters that differ from the preset, as text."""
    targets: Targets = Targets()
    """When to stop."""
    rehearsal: Rehearsal = Rehearsal()
    """What to show again of what must stay."""
    blocks: str = ""
    """Which blocks to adapt: ``all``, ``auto``, ``last:N``; empty means the method's own choice."""
    seed: int = 0
    """Seeds the split, the rehearsal, the initial weights and the order of batches."""
    again: bool = False
    """Learn what is known already, or forget what is forgotten already, once more."""
    skip_bad: bool = False
    """Go on without images that cannot be read, and record how many."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: str = "auto"
    """auto, fp32 or bf16: of the training steps; adapters and composition are fp32."""
    cache_gb: float = 4.0
    """Room for activations, in GiB: of frozen blocks, once, and what they leave for those of a classifier's step."""
    cache_dir: str = ""
    """Where activations are kept in files for the next operation; empty keeps them in memory."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object for the registry."""
        return dataclasses.asdict(self)
