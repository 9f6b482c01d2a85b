"""Classification: one label an image; an item is an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kswapctl.tasks.base import Alignment, Items, Marks, commonest, select
from kswapctl.tasks.shown import Shown


class Classification:
    """(B, K) logits against (B,) class indices."""

    name = "classification"
    marks: Marks = "labels"
    audited = True
    metric = "accuracy"
    spare = 0
    answered = "(N, K) logits"
    share = 1.0
    rarity = 0.0
    pace = 1

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) cross-entropies in nats."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) booleans: top-1 is the label."""
        return outputs.argmax(dim=-1) == targets

    def chance(self, classes: int) -> float:
        """Ln K, the cross-entropy of a uniform guess, in nats."""
        return math.log(classes)

    def truth(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """The targets themselves."""
        return targets

    def known(self, outputs: Tensor, rows: int) -> Tensor:
        """The first columns."""
        return outputs[..., :rows]

    def items(self, features: Tensor, outputs: Tensor, truth: Tensor) -> Items:
        """One item an image."""
        return Items(features[:, None], outputs[:, None], truth[:, None])

    def aside(self, outputs: Tensor, truth: Tensor, gone: Tensor) -> None:
        """Nothing: the label is all there is."""

    def answers(self, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """(B,) rows."""
        return outputs.argmax(dim=-1)

    def renamed(self, answers: Tensor, rows: Tensor) -> Tensor:
        """The rows themselves."""
        return rows[answers]

    def measure(self, answers: Tensor, targets: Tensor, rows: int, gone: Sequence[int]) -> Accuracy:
        """Accuracy over images."""
        return Accuracy(answers, targets)

    def aligned(self, outputs: Tensor, others: Tensor) -> Alignment:
        """All logits."""
        return Alignment(outputs, others)

    def show(self, outputs: Tensor, size: tuple[int, int]) -> list[Shown]:
        """The best class and its probability."""
        scores, rows = outputs.softmax(dim=-1).max(dim=-1)
        return [Shown(label=(int(row), float(score))) for row, score in zip(rows, scores, strict=True)]

    def show_truth(self, targets: Tensor) -> list[Shown]:
        """The labels."""
        return [Shown(label=(int(row), 1.0)) for row in targets]


@dataclass(frozen=True)
class Accuracy:
    """(N,) rows that were answered, beside the labels."""

    answers: Tensor
    targets: Tensor

    def count(self, row: int) -> int:
        """Images with this label."""
        return int((self.targets == row).sum())

    def images(self, rows: Sequence[int]) -> int:
        """Images with one of these labels."""
        return int(select(self.targets, rows).sum())

    def score(self, rows: Sequence[int]) -> dict[str, float]:
        """Share of the images with one of these labels that are answered rightly."""
        chosen = select(self.targets, rows)
        return {"accuracy": (self.answers[chosen] == self.targets[chosen]).float().mean().item()}

    def taken_for(self, row: int) -> list[tuple[int, float]]:
        """The commonest answers to images with this label."""
        return commonest(self.answers[self.targets == row])
