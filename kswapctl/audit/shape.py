"""M2: the shape of outputs on forgotten images, against images of classes the model never knew.

A model that answers oddly on what it forgot (flat, or always one class) tells an observer what was there. After the
ideas of Chundawat et al. (ZRF, 2022), Foster et al. (2024) and the neighbour-class attack of arXiv 2506.20893.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import entr, softmax
from sklearn.metrics import roc_auc_score

from kswapctl.audit.cases import Case
from kswapctl.audit.evidence import Floats


@dataclass(frozen=True)
class Shape:
    """How outputs on forgotten images look."""

    divergence: float
    """Median Jensen-Shannon divergence, in bits, to the original's answer without the forgotten classes."""
    detector: float | None
    """AUC in [0.5, 1] of telling forgotten from never-known images by the entropy of the answer."""
    concentration: float
    """Largest share of forgotten images that are named the same."""


def measure_shape(case: Case, original: Case) -> Shape:
    """The shape of ``case``'s answers on target images."""
    answers = probabilities(case.target_test.logits)
    ideal = original.target_test.logits.copy()
    ideal[:, original.target_labels] = -np.inf
    width = min(answers.shape[1], ideal.shape[1])
    divergence = float(np.median(jensen_shannon(answers[:, :width], probabilities(ideal[:, :width]))))
    named = answers.argmax(1)
    concentration = float(np.bincount(named).max() / len(named))
    return Shape(divergence, detector(case), concentration)


def detector(case: Case) -> float | None:
    """AUC, in its better direction, of entropy as a sign of a forgotten image; None without never-known images."""
    if case.novel is None:
        return None
    gone, novel = (entr(probabilities(v.logits)).sum(1) for v in (case.target_test, case.novel))
    truth = np.concatenate([np.ones(len(gone)), np.zeros(len(novel))])
    area = float(roc_auc_score(truth, np.concatenate([gone, novel])))
    return max(area, 1 - area)


def jensen_shannon(one: Floats, other: Floats) -> Floats:
    """(N,) divergence of (N, K) distributions in bits, in [0, 1]: entropy of the mean less the mean of entropies."""
    mixed: Floats = entr((one + other) / 2).sum(1) - (entr(one).sum(1) + entr(other).sum(1)) / 2
    return np.asarray(np.clip(mixed / np.log(2), 0.0, 1.0))


def probabilities(logits: Floats) -> Floats:
    """(N, K) softmax."""
    shares: Floats = softmax(logits.astype(np.float64), axis=1)
    return shares
