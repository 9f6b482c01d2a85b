"""Mean average precision as COCO counts it, by class and by set of classes (Lin et al., Microsoft COCO, ECCV 2014)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from kswapctl.errors import UsageError
from kswapctl.tasks.base import commonest, select

SIDE = 512.0
"""Pixels to which the sides of all images are brought: averages over all sizes of objects do not depend on it."""
OVERLAP = 0.5
"""Least intersection over union of an answer with an object that it is said to be taken for."""


@dataclass(frozen=True)
class Precision:
    """Answers beside objects, image by image."""

    answers: Tensor
    """(N, A, 6): row (-1 for none), score, two corners in [0, 1]."""
    targets: Tensor
    """(N, M, 6): row (-1 for none), centre and size in [0, 1], 1 for a crowd."""

    def count(self, row: int) -> int:
        """Images with an object of the class; a crowd is none, as it counts for nothing."""
        return self.images([row])

    def images(self, rows: Sequence[int]) -> int:
        """Images with an object of one of the classes."""
        return int(self._objects(rows).any(1).sum())

    def score(self, rows: Sequence[int]) -> dict[str, float]:
        """MAP (over overlaps of 50% to 95%) and mAP50, means over the classes of ``rows`` that have objects."""
        if not bool(self._objects(rows).any()):
            return {"mAP": math.nan, "mAP50": math.nan}
        metric = _metric()
        for answers, targets in zip(self.answers, self.targets, strict=True):
            metric.update([_answered(answers, rows)], [_marked(targets, rows)])
        found = metric.compute()
        return {"mAP": float(found["map"]), "mAP50": float(found["map_50"])}

    def _objects(self, rows: Sequence[int]) -> Tensor:
        """(N, M) booleans."""
        return select(self.targets[..., 0], rows) & (self.targets[..., 5] == 0)

    def taken_for(self, row: int) -> list[tuple[int, float]]:
        """The class of the surest answer over each object of the class; -1 where there is none."""
        named: list[int] = []
        for answers, targets in zip(self.answers, self.targets, strict=True):
            objects = targets[(targets[:, 0] == row) & (targets[:, 5] == 0)]
            there = answers[answers[:, 0] >= 0]
            if not len(objects):
                continue
            overlaps = box_iou(_corners(objects), there[:, 2:] * SIDE) >= OVERLAP  # (objects, answers)
            surest = torch.where(overlaps, there[:, 1], -1.0)
            for scores in surest:
                named.append(int(there[scores.argmax(), 0]) if len(scores) and scores.max() >= 0 else -1)
        return commonest(torch.tensor(named)) if named else []


def _marked(targets: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
    chosen = targets[select(targets[:, 0], rows)]
    return {"boxes": _corners(chosen), "labels": chosen[:, 0].long(), "iscrowd": chosen[:, 5].long()}


def _corners(targets: Tensor) -> Tensor:
    corners: Tensor = box_convert(targets[:, 1:5], "cxcywh", "xyxy") * SIDE
    return corners


def _answered(answers: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
    chosen = answers[select(answers[:, 0], rows)]
    return {"boxes": chosen[:, 2:] * SIDE, "scores": chosen[:, 1], "labels": chosen[:, 0].long()}


def _metric() -> Any:
    try:
        from torchmetrics.detection import MeanAveragePrecision

        return MeanAveragePrecision(backend="faster_coco_eval")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"mean average precision needs {error.name or 'a package'}, which is not installed",
            "in a clone: uv sync --extra detection",
        ) from error
