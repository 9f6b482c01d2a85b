"""What a study measures at each stage, in the papers' words: accuracy on what stays, comes, goes and went."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kswapctl.evaluation.scores import Evaluation, h_mean


@dataclass(frozen=True)
class Sets:
    """The classes of a cell."""

    known: tuple[str, ...]
    """What the base knows."""
    lessons: tuple[tuple[str, ...], ...]
    """What is learned, task by task."""
    tasks: tuple[tuple[str, ...], ...]
    """What is forgotten, task by task."""

    def lesson(self, number: int) -> tuple[str, ...]:
        """The classes of the learning task ``number`` from 0; the last ones again, once there is no further."""
        return self.lessons[min(number, len(self.lessons) - 1)] if self.lessons else ()

    def task(self, number: int) -> tuple[str, ...]:
        """The classes of the forgetting task ``number``, likewise."""
        return self.tasks[min(number, len(self.tasks) - 1)] if self.tasks else ()


def measure(scores: Evaluation, sets: Sets, order: str, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Acc_r, Acc_l, Acc_f, Acc_o, H and drop, in percent, after the operations of ``order``; of the base, before any.

    Acc_f is of the task just forgotten, or of the next one where none was; Acc_r of the base's classes that no task
    up to that one takes; Acc_o of earlier tasks; drop the retained accuracy lost against the base, in points. Acc_a and
    drop_a are those of the base's classes that no task of the whole order takes. Acc_l is of all lessons so far.
    H is the harmonic mean of Acc_r and of what Acc_f lost (Zhao et al. 2024); ``before`` is the row above.
    """
    forgets = order.count("f")
    current = max(0, forgets - 1)
    # of classifiers each image counts, of mAP and mIoU each class: as the evaluation has it
    counts = {c.name: c.images if scores.metric == "accuracy" else 1 for c in scores.per_class}
    now = {c.name: (counts[c.name], c.accuracy if order else c.base) for c in scores.per_class}
    base = {c.name: (counts[c.name], c.base) for c in scores.per_class}
    goes = sets.task(current)
    earlier = [c for task in sets.tasks[:current] for c in task if c not in goes]
    stays = [c for c in sets.known if c not in goes and c not in earlier]
    always = [c for c in sets.known if all(c not in task for task in sets.tasks)]
    came = dict.fromkeys(c for lesson in sets.lessons[: order.count("l")] for c in lesson)
    found: dict[str, Any] = {
        "Acc_r": _accuracy(now, stays),
        "Acc_l": _accuracy(now, came),
        "Acc_f": _accuracy(now, goes),
        "Acc_o": _accuracy(now, earlier),
        "Acc_a": _accuracy(now, always),
        "drop": None,
        "drop_a": None,
        "H": None,
        "per class": {name: 100 * accuracy for name, (_, accuracy) in now.items()},
    }
    if order:
        found["drop"] = _less(_accuracy(base, stays), found["Acc_r"])
        found["drop_a"] = _less(_accuracy(base, always), found["Acc_a"])
    if order.endswith("f") and goes:
        was = base
        if before is not None and forgets <= len(sets.tasks):
            was = {c: (now[c][0], before["per class"][c] / 100) for c in goes if c in now}
        lost = _less(_accuracy(was, goes), found["Acc_f"])
        found["H"] = None if lost is None else 100 * h_mean((found["Acc_r"] or 0.0) / 100, max(0.0, lost) / 100)
    return found


def _less(one: float | None, other: float | None) -> float | None:
    """The difference; None where either was not measured."""
    return None if one is None or other is None else one - other


def _accuracy(rates: Mapping[str, tuple[int, float]], classes: Collection[str]) -> float | None:
    """Percent right over all that ``classes`` count for; None where there is none."""
    images = sum(rates[c][0] for c in classes if c in rates)
    return 100 * sum(rates[c][0] * rates[c][1] for c in classes if c in rates) / images if images else None
