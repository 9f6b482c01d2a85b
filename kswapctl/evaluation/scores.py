"""Pure score functions over logits and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassScore:
    """How one class fares."""

    name: str
    images: int
    accuracy: float
    """In [0, 1]."""
    base: float
    """Accuracy of the untouched base, in [0, 1]."""


@dataclass(frozen=True)
class SetScore:
    """How one set of classes fares: accuracy over its images."""

    name: str
    """retain, learned, forgotten, or forgotten earlier."""
    classes: int
    images: int
    accuracy: float
    """In [0, 1]."""
    base: float
    """Accuracy of the untouched base, in [0, 1]."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one version on the test part."""

    sets: tuple[SetScore, ...]
    per_class: tuple[ClassScore, ...]
    taken_for: dict[str, list[tuple[str, float]]]
    """Forgotten class to what its images are now taken for: up to three classes with their share."""
    h_mean: float | None
    """Harmonic mean of retained accuracy and forgotten drop (Zhao et al. 2024); None where nothing is forgotten."""

    def set(self, name: str) -> SetScore | None:
        """The score of the set called ``name``, if it has classes."""
        return next((s for s in self.sets if s.name == name), None)


def evaluate(
    outputs: Tensor,
    base_outputs: Tensor,
    targets: Tensor,
    rows: Sequence[str],
    sets: Mapping[str, Sequence[str]],
) -> Evaluation:
    """Scores of (N, K) logits, beside the base's (N, K_base), for (N,) labels that index ``rows``."""
    correct = outputs.argmax(dim=-1) == targets
    base_correct = base_outputs.argmax(dim=-1) == targets
    position = {name: index for index, name in enumerate(rows)}
    scores = []
    per_class = []
    for name, classes in sets.items():
        chosen = sum((targets == position[c] for c in classes), targets != targets)
        if not chosen.any():
            continue
        scores.append(
            SetScore(name, len(classes), int(chosen.sum()), _mean(correct[chosen]), _mean(base_correct[chosen]))
        )
        for c in classes:
            own = targets == position[c]
            if own.any():
                per_class.append(ClassScore(c, int(own.sum()), _mean(correct[own]), _mean(base_correct[own])))
    forgotten = [c for name in ("forgotten", "forgotten earlier") for c in sets.get(name, ())]
    answers = outputs.argmax(dim=-1)
    taken_for = {
        c: _commonest(answers[targets == position[c]], rows) for c in forgotten if (targets == position[c]).any()
    }
    by_name = {s.name: s for s in scores}
    return Evaluation(tuple(scores), tuple(per_class), taken_for, _h_mean(by_name))


def h_mean(retained: float, drop: float) -> float:
    """2 * retained * drop / (retained + drop): retained accuracy and forgotten drop in [0, 1] (Zhao et al. 2024)."""
    return 2 * retained * drop / (retained + drop) if retained + drop > 0 else 0.0


def _h_mean(scores: Mapping[str, SetScore]) -> float | None:
    if "retain" not in scores or "forgotten" not in scores:
        return None
    gone = scores["forgotten"]
    return h_mean(scores["retain"].accuracy, max(0.0, gone.base - gone.accuracy))


def _commonest(answers: Tensor, rows: Sequence[str]) -> list[tuple[str, float]]:
    counts = Counter(answers.tolist()).most_common(3)
    return [(rows[index], count / len(answers)) for index, count in counts]


def _mean(values: Tensor) -> float:
    return values.float().mean().item()
