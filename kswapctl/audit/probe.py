"""M4: a fresh linear probe on frozen features: can a straight cut still tell the forgotten classes?

Alain & Bengio, Understanding intermediate layers using linear classifier probes, 2016; the shuffled-label control is
that of Hewitt & Liang, Designing and Interpreting Probes with Control Tasks, EMNLP 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from kswapctl.audit.cases import Case, balanced, fewest
from kswapctl.audit.evidence import Integers
from kswapctl.audit.recovery import Scores

GRID = (0.01, 0.1, 1.0)
"""Strengths C among which 5 folds of the retained images choose."""
FOLDS = 5


@dataclass(frozen=True)
class Probed:
    """What a probe recovers at one depth."""

    scores: Scores
    """Of the target test images."""
    shuffled: float
    """Accuracy on the same images of a probe trained on shuffled labels: what chance gives."""


def choose_strength(case: Case, depth: str, seed: int) -> float:
    """The C that names retained classes best, by cross-validation on retained images only; the middle one without."""
    kept = balanced(case.retain_train, _each(case), seed)
    counts = np.unique(case.retain_train.labels[kept], return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2:
        return GRID[len(GRID) // 2]
    folds = StratifiedKFold(min(FOLDS, int(counts.min())), shuffle=True, random_state=seed)
    search = GridSearchCV(_probe(1.0), {"logisticregression__C": GRID}, cv=folds)
    search.fit(case.retain_train.depths[depth][kept], case.retain_train.labels[kept])
    return float(search.best_params_["logisticregression__C"])


def attack_by_probe(case: Case, depth: str, strength: float, seed: int) -> Probed:
    """Fit a probe over all classes, equally many images of each, and name the target test images with it."""
    each = _each(case)
    kept, gone = balanced(case.retain_train, each, seed), balanced(case.target_train, each, seed)
    features = np.concatenate([case.retain_train.depths[depth][kept], case.target_train.depths[depth][gone]])
    labels = np.concatenate([case.retain_train.labels[kept], case.target_train.labels[gone]])
    test, truth = case.target_test.depths[depth], case.target_test.labels
    named: Integers = _probe(strength).fit(features, labels).predict(test)
    mixed = np.random.default_rng(seed).permutation(labels)
    shuffled: Integers = _probe(strength).fit(features, mixed).predict(test)
    return Probed(Scores((named == truth).astype(np.float64), truth), float((shuffled == truth).mean()))


def _each(case: Case) -> int:
    return fewest(case.retain_train, case.target_train)


def _probe(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300, tol=1e-3))
