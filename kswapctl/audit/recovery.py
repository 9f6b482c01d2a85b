"""The recovery index: where a score stands between a reference that never knew (0) and the original (1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kswapctl.audit.evidence import Floats, Integers

SMALLEST_GAP = 0.05
"""Original less reference; below it an attack cannot tell the two apart and the index is undefined."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Scores:
    """What an attack recovers of each test image: 1 named rightly, 0 not, or the share of several draws."""

    values: Floats
    """(N,) in [0, 1]."""
    labels: Integers
    """(N,) class of each image."""

    @property
    def mean(self) -> float:
        """Over the images."""
        return float(self.values.mean())

    def by_class(self) -> dict[int, float]:
        """Mean of each class."""
        return {int(c): float(self.values[self.labels == c].mean()) for c in np.unique(self.labels)}


@dataclass(frozen=True)
class Recovery:
    """A recovery index with what it was made of; None where the reference and the original do not differ."""

    audited: float
    original: float
    reference: float
    index: float | None
    """Over all images, in [0, 1]."""
    low: float | None
    """2.5th percentile over resampled images."""
    high: float | None
    """97.5th percentile."""
    worst: float | None
    """The index of the class that has the highest."""
    worst_class: int | None
    """Its label."""


def index(audited: float, original: float, reference: float) -> float | None:
    """(audited - reference) / (original - reference), cut to [0, 1]; None where the gap is under 0.05."""
    gap = original - reference
    return None if gap < SMALLEST_GAP else float(np.clip((audited - reference) / gap, 0.0, 1.0))


def recover(audited: Scores, original: Scores, reference: Scores, paired: bool, seed: int) -> Recovery:
    """The index of ``audited`` with a bootstrap over images, resampled within each class.

    ``paired``: the reference's scores are of the same images. Else they are of other classes, and their mean over
    all images stands for every class.
    """
    each: dict[int, float] = {}
    theirs = reference.by_class()
    for label, own in audited.by_class().items():
        value = index(own, original.by_class()[label], theirs[label] if paired else reference.mean)
        if value is not None:
            each[label] = value
    worst_class = max(each, key=lambda c: each[c]) if each else None
    point = index(audited.mean, original.mean, reference.mean)
    low, high = (None, None) if point is None else _interval(audited, original, reference, paired, seed)
    worst = None if worst_class is None else each[worst_class]
    return Recovery(audited.mean, original.mean, reference.mean, point, low, high, worst, worst_class)


def _interval(audited: Scores, original: Scores, reference: Scores, paired: bool, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    mine = _resample(audited.labels, generator)
    other = mine if paired else _resample(reference.labels, generator)
    one = audited.values[mine].mean(1)
    most, least = original.values[mine].mean(1), reference.values[other].mean(1)
    drawn = np.clip((one - least) / np.maximum(most - least, SMALLEST_GAP), 0.0, 1.0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _resample(labels: Integers, generator: np.random.Generator) -> Integers:
    """(RESAMPLES, N) positions, drawn with replacement within each class."""
    columns = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        columns.append(own[generator.integers(0, len(own), (RESAMPLES, len(own)))])
    return np.concatenate(columns, axis=1)
