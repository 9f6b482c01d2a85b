"""What all steps of one operation share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kswapctl.data.images import Images
from kswapctl.methods import Context, Method
from kswapctl.operations.versions import Composed
from kswapctl.spec import Change, Role
from kswapctl.tasks import TASKS, Task
from kswapctl.training.items import item_forward
from kswapctl.training.pool import Pool
from kswapctl.training.subject import Subject
from kswapctl.training.team import Team


@dataclass(frozen=True)
class Bench:
    """What all steps of one operation share."""

    composed: Composed
    change: Change
    method: Method
    images: Mapping[str, Images]
    rows: tuple[str, ...]
    """Classifier rows after the operation."""
    known: tuple[str, ...]
    """Classes that must stay."""
    team: Team
    generator: torch.Generator

    @property
    def task(self) -> Task:
        """What the labels mean."""
        return TASKS[self.composed.spec.task]

    @property
    def length(self) -> int:
        """Steps of one cycle."""
        return self.method.steps_of(len(self.images["retain"]), self.task)

    def context(self, subject: Subject, pools: Mapping[Role, Pool]) -> Context:
        """What the method is told; columns of the outputs are rows of the classifier, after the task's spare ones."""
        changed, kept = (
            torch.tensor([self.rows.index(name) for name in names], device=subject.device)
            for names in (self.change.classes, self.known)
        )
        return Context(
            task=self.task,
            known=subject.known_rows() + self.task.spare,
            chance=self.task.chance(len(self.rows)),
            rows=changed + self.task.spare,
            retained=kept + self.task.spare,
            gone=changed if self.change.kind == "forget" else changed[:0],
            classifier=subject.classifier(self.task),
            groups=subject.groups,
            layers=subject.layers,
            forward=item_forward(subject.forward, pools, self.task),
            widths=subject.widths,
        )

    def targets(self, part: str) -> torch.Tensor:
        """(N, ...) targets of the images of ``part``; nothing trains a class forgotten earlier: it has no name here."""
        forgotten = set(self.composed.knowledge.forgotten) - set(self.change.classes)
        return self.images[part].targets(tuple(f"\0{c}" if c in forgotten else c for c in self.rows))
