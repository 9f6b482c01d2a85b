"""Scores of answers against targets, by set of classes and by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kswapctl.spec import Knowledge
from kswapctl.tasks import Measured, Task

NOTHING = "no object"
"""What a forgotten object is taken for where no answer lies over it."""


@dataclass(frozen=True)
class ClassScore:
    """How one class fares."""

    name: str
    images: int
    accuracy: float
    """The task's deciding metric, in [0, 1]: accuracy, mAP or mIoU."""
    base: float
    """The same of the untouched base."""
    taken_for: tuple[tuple[str, float], ...] = ()
    """What else it is taken for: the commonest other answers, with their share of its items in [0, 1]."""


@dataclass(frozen=True)
class SetScore:
    """How one set of classes fares: accuracy over its images, or the mean over its classes of AP or IoU."""

    name: str
    """retain, learned, forgotten, or forgotten earlier."""
    classes: int
    """Those that a test item shows."""
    images: int
    accuracy: float
    """The task's deciding metric, in [0, 1]: accuracy, mAP or mIoU."""
    base: float
    """The same of the untouched base."""
    more: dict[str, tuple[float, float]]
    """The task's other metrics, and the base's."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one version on the test part."""

    sets: tuple[SetScore, ...]
    per_class: tuple[ClassScore, ...]
    taken_for: dict[str, list[tuple[str, float]]]
    """Forgotten class to what its images are now taken for: up to three classes with their share."""
    h_mean: float | None
    """Harmonic mean of retained accuracy and forgotten drop (Zhao et al. 2024); None where nothing that the base knew
    is forgotten."""
    metric: str = "accuracy"
    """What ``accuracy`` is of this task."""
    unseen: tuple[str, ...] = ()
    """Classes of the sets that no test item shows: nothing is said of them."""

    def set(self, name: str) -> SetScore | None:
        """The score of the set called ``name``, if it has classes."""
        return next((s for s in self.sets if s.name == name), None)


def evaluate(
    task: Task,
    answers: Tensor,
    base_answers: Tensor,
    targets: Tensor,
    knowledge: Knowledge,
    others: tuple[str, ...] = (),
) -> Evaluation:
    """Scores of what a version answered, beside its base's answers, for targets that index its classes.

    ``others`` are classes that only the base answers, in rows after the version's own; none is scored.
    """
    rows, sets = knowledge.classes + others, knowledge.sets()
    position = {name: index for index, name in enumerate(rows)}
    forgotten = [c for name in ("forgotten", "forgotten earlier") for c in sets.get(name, ())]
    gone = [position[c] for c in forgotten]
    now, base = (task.measure(a, targets, len(rows), gone) for a in (answers, base_answers))
    there = {name: [c for c in classes if now.count(position[c])] for name, classes in sets.items()}
    scores = [
        _set_score(task.metric, name, classes, [position[c] for c in classes], now, base)
        for name, classes in there.items()
        if classes
    ]
    answered = {
        c: [(rows[row] if row >= 0 else NOTHING, share) for row, share in now.taken_for(position[c])]
        for s in scores
        for c in there[s.name]
    }
    per_class = tuple(_class_score(task.metric, c, position[c], (now, base), named) for c, named in answered.items())
    taken_for = {c: answered[c] for c in forgotten if c in answered}
    unseen = tuple(c for name, classes in sets.items() for c in classes if c not in there[name])
    return Evaluation(tuple(scores), per_class, taken_for, _h_mean({s.name: s for s in scores}), task.metric, unseen)


def _set_score(
    metric: str, name: str, classes: Sequence[str], rows: Sequence[int], now: Measured, base: Measured
) -> SetScore:
    here, there = now.score(rows), base.score(rows)
    more = {key: (here[key], there[key]) for key in here if key != metric}
    return SetScore(name, len(classes), now.images(rows), here[metric], there[metric], more)


def _class_score(
    metric: str, name: str, row: int, measured: tuple[Measured, Measured], answered: Sequence[tuple[str, float]]
) -> ClassScore:
    now, base = measured
    others = tuple((other, share) for other, share in answered if other != name)
    return ClassScore(name, now.count(row), now.score([row])[metric], base.score([row])[metric], others)


def h_mean(retained: float, drop: float) -> float:
    """2 * retained * drop / (retained + drop): retained accuracy and forgotten drop in [0, 1] (Zhao et al. 2024)."""
    return 2 * retained * drop / (retained + drop) if retained + drop > 0 else 0.0


def _h_mean(scores: Mapping[str, SetScore]) -> float | None:
    if "retain" not in scores or "forgotten" not in scores:
        return None
    gone = scores["forgotten"]
    if not gone.base:  # learned on top of the base, and forgotten again: there is no drop to speak of
        return None
    return h_mean(scores["retain"].accuracy, max(0.0, gone.base - gone.accuracy))
