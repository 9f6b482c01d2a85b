"""The protocol of a task: what methods, the loop and the evaluation may ask about outputs and targets.

A method works on **items**: (N, K) outputs with (N,) targets. What an item is, the task decides: an image, an object
with the query that answers for it, or a pixel. So a method written for one task serves all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from kswapctl.tasks.shown import Shown

Marks = Literal["labels", "boxes", "masks"]
"""How images say what is on them: one label each, boxes with labels, or a label for each pixel."""


@dataclass(frozen=True)
class Items:
    """S items of each of B images; images with fewer have items whose target is -1."""

    features: Tensor
    """(B, S, D), the classifier's input."""
    outputs: Tensor
    """(B, S, K)."""
    targets: Tensor
    """(B, S) columns of ``outputs``, or -1."""


@dataclass(frozen=True)
class Alignment:
    """M places of the outputs of two networks, each beside the same place of the other."""

    one: Tensor
    """(M, C) values."""
    other: Tensor
    """(M, C)."""
    first: int = 0
    """The column at which the class scores begin."""
    alike: Tensor | None = None
    """(M,) booleans, where the best class is not all: the places also agree in what else is answered."""


class Measured(Protocol):
    """How the answers of one model to a set of images fare."""

    def count(self, row: int) -> int:
        """Images on which the class of ``row`` is."""
        ...

    def images(self, rows: Sequence[int]) -> int:
        """Images on which one of the classes of ``rows`` is."""
        ...

    def score(self, rows: Sequence[int]) -> dict[str, float]:
        """The task's metrics over the classes of ``rows``, in [0, 1], the first the one that decides; NaN for none."""
        ...

    def taken_for(self, row: int) -> list[tuple[int, float]]:
        """Up to three rows that the class of ``row`` is answered with, and their shares; -1 for no object at all."""
        ...


class Task(Protocol):
    """Turns a network's outputs and the marks of images into items, losses and scores."""

    name: str
    marks: Marks
    """What the images of the data must have."""
    audited: bool
    """Whether an audit's attacks can be made: they need one label an image."""
    metric: str
    """Name of the score that decides."""
    spare: int
    """Columns of items' outputs before the first class: one for "no object", or none."""
    answered: str
    """What the numbers of an exported network are, for who reads them."""
    share: float
    """Images in a step for each that a method asks for: fewer where an image has many items."""
    pace: int
    """Steps for each that a method asks for: more where a step sees few images."""
    rarity: float
    """By how many logits an item of a new class is less likely in use than among the items that training shows."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,) losses of items in nats, small where the model knows the targets."""
        ...

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,) booleans: the model's answer to the item is the target."""
        ...

    def chance(self, classes: int) -> float:
        """The loss of a model that knows nothing of an item, in nats: the unit in which bounds are given."""
        ...

    def truth(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """What training must know of images' ``targets``, for a network with ``outputs`` of this shape."""
        ...

    def known(self, outputs: Tensor, rows: int) -> Tensor:
        """The part of ``outputs`` that is about the first ``rows`` classes."""
        ...

    def items(self, features: Tensor, outputs: Tensor, truth: Tensor) -> Items:
        """The items of B images, from the network's features and outputs."""
        ...

    def aside(self, outputs: Tensor, truth: Tensor, gone: Tensor) -> Tensor | None:
        """What training asks besides the method, of what stays and comes: a scalar, or None; ``gone`` rows go."""
        ...

    def answers(self, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """What is kept of B images' outputs to measure them; ``size`` is the input's height and width."""
        ...

    def renamed(self, answers: Tensor, rows: Tensor) -> Tensor:
        """``answers`` with the (K,) new ``rows`` of the classes: another version's, to be measured beside its own."""
        ...

    def measure(self, answers: Tensor, targets: Tensor, rows: int, gone: Sequence[int]) -> Measured:
        """Compare answers with targets for a classifier of ``rows``; for those ``gone`` nothing is right any more."""
        ...

    def aligned(self, outputs: Tensor, others: Tensor) -> Alignment:
        """What of two networks' outputs for the same B images must be equal, if they compute the same."""
        ...

    def show(self, outputs: Tensor, size: tuple[int, int]) -> list[Shown]:
        """What B images' outputs say, to be drawn; ``size`` is the input's height and width."""
        ...

    def show_truth(self, targets: Tensor) -> list[Shown]:
        """What is marked on images, to be drawn."""
        ...


def flatten(items: Items) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N, D) features, (N, K) outputs, (N,) targets of the items that have one, and (B, S) booleans: which."""
    there = items.targets >= 0
    return items.features[there], items.outputs[there], items.targets[there], there


def commonest(answers: Tensor) -> list[tuple[int, float]]:
    """Up to three values of (N,) integers, the commonest first, with their share of all."""
    counts = Counter(answers.tolist())
    return [(value, count / counts.total()) for value, count in counts.most_common(3)]


def select(targets: Tensor, rows: Sequence[int]) -> Tensor:
    """Booleans in the shape of ``targets``: which of them are among ``rows``."""
    return torch.isin(targets, torch.tensor(list(rows), dtype=targets.dtype, device=targets.device))
