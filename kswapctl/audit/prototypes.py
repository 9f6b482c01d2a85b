"""M5: a few images of each forgotten class, averaged: does the mean find the rest?

Nearest class mean over all classes votes; overwriting the classifier's own row is the attack of "Spotter" (Sepahvand
et al., arXiv 2506.01318): w <- a w + (1 - a) w_old, by cosine (w = p) or distance (w = 2p, b = -|p|^2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kswapctl.audit.cases import Case, Head
from kswapctl.audit.evidence import Floats
from kswapctl.audit.recovery import Scores

SHOTS = (1, 5, 10)
VOTING_SHOTS = 5
DRAWS = 20
SHARES = (0.5, 1.0)
"""Weights a of the prototype in an overwritten row."""


@dataclass(frozen=True)
class Prototyped:
    """What prototypes recover."""

    scores: dict[int, Scores]
    """Images a class to nearest-mean scores of the target test images, averaged over draws."""
    overwritten: dict[str, float]
    """Form of the overwritten row (such as "cosine, k=5, a=0.5") to mean accuracy on target test images."""


def attack_by_prototypes(case: Case, seed: int) -> Prototyped:
    """Attack with k images of each target class, in several draws."""
    scores: dict[int, Scores] = {}
    overwritten: dict[str, float] = {}
    for shots in SHOTS:
        hits = np.zeros(len(case.target_test.labels))
        forms: dict[str, list[float]] = {}
        for draw in range(DRAWS):
            prototypes = _prototypes(case, shots, np.random.default_rng([seed, shots, draw]))  # (T, D)
            hits += _nearest(case, prototypes)
            for name, accuracy in _overwrite(case, prototypes).items():
                forms.setdefault(name, []).append(accuracy)
        scores[shots] = Scores(hits / DRAWS, case.target_test.labels)
        overwritten |= {f"{name.replace(',', f', k={shots},')}": float(np.mean(v)) for name, v in forms.items()}
    return Prototyped(scores, overwritten)


def _prototypes(case: Case, shots: int, generator: np.random.Generator) -> Floats:
    """(T, D): the mean of ``shots`` training images of each target class."""
    means = []
    for label in case.target_labels:
        own = np.flatnonzero(case.target_train.labels == label)
        means.append(case.target_train.features[generator.permutation(own)[:shots]].mean(0))
    return np.stack(means)


def _nearest(case: Case, prototypes: Floats) -> Floats:
    """(N,) whether the nearest mean, by cosine from the retained mean, is the image's own.

    Of the retained classes those have a mean that have images.
    """
    train = case.retain_train
    centre = train.features.mean(0)
    shown = np.unique(train.labels)
    known = [train.features[train.labels == c].mean(0) for c in shown]
    means = _unit(np.concatenate([np.stack(known), prototypes]) - centre)
    nearest = (_unit(case.target_test.features - centre) @ means.T).argmax(1)
    named = np.array([*shown, *case.target_labels])[nearest]
    return np.asarray(named == case.target_test.labels, dtype=np.float64)


def _overwrite(case: Case, prototypes: Floats) -> dict[str, float]:
    """Accuracy on target images with their rows overwritten, by form."""
    unit = _unit(prototypes)
    size = np.linalg.norm(case.head.weight[: case.retained], axis=1).mean()
    forms = {
        "cosine": Head(unit * size, np.zeros(len(unit))),
        "distance": Head(2 * unit, -np.square(unit).sum(1)),
    }
    inputs = {"cosine": case.target_test.features, "distance": _unit(case.target_test.features)}
    found = {}
    for form, rows in forms.items():
        for share in SHARES:
            weight, bias = case.head.weight.copy(), case.head.bias.copy()
            names = case.target_labels
            weight[names] = share * rows.weight + (1 - share) * weight[names]
            bias[names] = share * rows.bias + (1 - share) * bias[names]
            named = (inputs[form] @ weight.T + bias).argmax(1)
            found[f"{form}, a={share}"] = float((named == case.target_test.labels).mean())
    return found


def _unit(rows: Floats) -> Floats:
    """Each row at length one."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
