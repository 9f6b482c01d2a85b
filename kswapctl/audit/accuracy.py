"""M1: what the model still says. Accuracy on forgotten and retained test images, with Wilson intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from kswapctl.audit.cases import Case, View
from kswapctl.evaluation.scores import h_mean


@dataclass(frozen=True)
class Share:
    """A share of images with its 95% interval (Wilson 1927)."""

    images: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracies:
    """What one model names rightly."""

    forgotten: Share
    retained: Share
    by_class: dict[int, Share]
    """Forgotten class (its label) to its share."""
    h_mean: float
    """Harmonic mean of retained accuracy and forgotten drop (Zhao et al. 2024)."""


def right(view: View) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(N,) whether each image is named rightly."""
    return np.asarray(view.logits.argmax(1) == view.labels)


def share_of(successes: int, images: int) -> Share:
    """``successes`` of ``images`` with a Wilson interval."""
    interval = binomtest(successes, images).proportion_ci(method="wilson")
    return Share(images, successes / images, float(interval.low), float(interval.high))


def measure_accuracy(case: Case, original: Case) -> Accuracies:
    """Accuracies of ``case``; ``original`` tells from where they fell."""
    hits, kept = right(case.target_test), right(case.retain_test)
    each = {}
    for label in case.target_labels:
        own = case.target_test.labels == label
        if own.any():
            each[label] = share_of(int(hits[own].sum()), int(own.sum()))
    forgotten, retained = share_of(int(hits.sum()), len(hits)), share_of(int(kept.sum()), len(kept))
    drop = max(0.0, float(right(original.target_test).mean()) - forgotten.value)
    return Accuracies(forgotten, retained, each, h_mean(retained.value, drop))
