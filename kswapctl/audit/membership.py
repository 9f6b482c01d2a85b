"""M3: can one tell which forgotten-class images were trained on? Training against test images of the same classes.

The attack of the NeurIPS 2023 unlearning starting kit (logistic regression on one score, 10 folds), on the scaled
confidence of LiRA (Carlini et al. 2022) and the loss, with as many members as non-members in each class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kswapctl.audit.cases import Case, View, balanced
from kswapctl.audit.evidence import Floats, Integers

RESAMPLES = 1000
FOLDS = 10
ENOUGH = 500
"""Members and non-members from which a rate at 1% false positives means something."""


@dataclass(frozen=True)
class Membership:
    """How well members are told from non-members."""

    images: int
    auc: float
    """Of the scaled confidence; 0.5 is chance; below it the attack points the wrong way, which leaks as much."""
    low: float
    high: float
    """95% bootstrap interval over images."""
    accuracy: float | None
    """Of the starting kit's attack; None with one image of each: it cannot be both fitted and tested."""
    rate: float | None
    """True positives at 1% false positives; None with under 500 of each."""


def measure_membership(case: Case, seed: int) -> Membership:
    """Attack ``case``'s forgotten classes; both sides have as many images of each class."""
    members, others = _matched(case, seed)
    scores = np.concatenate([signals(members), signals(others)])
    truth = np.concatenate([np.ones(len(members.labels)), np.zeros(len(others.labels))]).astype(np.int64)
    confidence = scores[
        :, 0
    ]  # not the fitted scores of held-out folds: where nothing is to be found those fall below 0.5
    low, high = _interval(confidence, truth, seed)
    rate = None
    if truth.sum() >= ENOUGH:
        false, true, _ = roc_curve(truth, confidence)
        rate = float(np.interp(0.01, false, true))
    auc = float(roc_auc_score(truth, confidence))
    return Membership(int(truth.sum()), auc, low, high, _fitted(scores, truth, seed), rate)


def _fitted(scores: Floats, truth: Integers, seed: int) -> float | None:
    """Accuracy of a logistic regression on held-out folds."""
    folds = min(FOLDS, int(truth.sum()))
    if folds < 2:
        return None
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    return float(cross_val_score(model, scores, truth, cv=cut).mean())


def signals(view: View) -> Floats:
    """(N, 2): scaled confidence log p_y - log(1 - p_y), and loss -log p_y, both cut to +-50."""
    logits = view.logits.astype(np.float64)
    places = np.arange(len(logits))
    own = logits[places, view.labels]
    rest = logits.copy()
    rest[places, view.labels] = -np.inf
    with np.errstate(invalid="ignore"):
        confidence, loss = own - logsumexp(rest, axis=1), logsumexp(logits, axis=1) - own
    return np.asarray(np.nan_to_num(np.stack([confidence, loss], axis=1).clip(-50, 50)))


def _matched(case: Case, seed: int) -> tuple[View, View]:
    members: list[Integers] = []
    others: list[Integers] = []
    for label in case.target_labels:
        train = case.target_train.take(np.flatnonzero(case.target_train.labels == label))
        test = case.target_test.take(np.flatnonzero(case.target_test.labels == label))
        size = min(len(train.labels), len(test.labels))
        if size:
            members.append(np.flatnonzero(case.target_train.labels == label)[balanced(train, size, seed)])
            others.append(np.flatnonzero(case.target_test.labels == label)[balanced(test, size, seed)])
    return case.target_train.take(np.concatenate(members)), case.target_test.take(np.concatenate(others))


def _interval(guessed: Floats, truth: Integers, seed: int) -> tuple[float, float]:
    """Bootstrap of the AUC; the area is the share of pairs in the right order, read from ranks."""
    generator = np.random.default_rng(seed)
    members, others = guessed[truth == 1], guessed[truth == 0]
    areas = []
    for _ in range(RESAMPLES):
        one = np.sort(generator.choice(others, len(others)))
        two = generator.choice(members, len(members))
        below, upto = np.searchsorted(one, two, "left"), np.searchsorted(one, two, "right")
        areas.append((below + upto).mean() / 2 / len(one))
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)
