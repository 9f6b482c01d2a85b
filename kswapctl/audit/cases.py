"""A case: one model's evidence, sorted into what is retained and what an attacker wants back.

The same attack runs on the audited model, the original, the head-masked one and the reference, each as a case with
the same labels: 0 .. R - 1 are retained classes, R .. R + T - 1 the targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kswapctl.audit.evidence import LAST, Floats, Integers, Observed

MASK_MARGIN = 1.0
"""How far below the lowest winning logit a masked row stands."""


@dataclass(frozen=True)
class View:
    """Images of known classes, as one model sees them."""

    depths: dict[str, Floats]
    """Depth to (N, D) features."""
    logits: Floats
    """(N, R + T + others): columns in the order of the labels, then the model's other rows; -inf where it has none."""
    labels: Integers
    """(N,) in 0 .. R + T - 1; -1 for an image of a class the model never knew."""

    @property
    def features(self) -> Floats:
        """(N, D) before the classifier."""
        return self.depths[LAST]

    def take(self, chosen: Integers) -> View:
        """The images at these positions."""
        return View({k: v[chosen] for k, v in self.depths.items()}, self.logits[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Head:
    """A linear classifier."""

    weight: Floats
    """(K, D)."""
    bias: Floats
    """(K,)."""


@dataclass(frozen=True)
class Case:
    """One model under attack."""

    retain_train: View
    retain_test: View
    target_train: View
    target_test: View
    head: Head
    """(R + T) rows in the order of the labels; a class the model has no row for gets a blank one."""
    retained: int
    """R."""
    targets: int
    """T."""
    novel: View | None = None
    """Test images of classes the model never knew."""

    @property
    def target_labels(self) -> range:
        """R .. R + T - 1."""
        return range(self.retained, self.retained + self.targets)


Parts = Mapping[str, Observed]
"""Observed images by part: retain train, retain test, forget train, forget test, control train, control test."""


def make_case(
    parts: Parts,
    head: Head,
    rows: Sequence[str],
    retained: Sequence[str],
    targets: Sequence[str],
    role: str = "forget",
) -> Case:
    """The case of a model whose classifier ``head`` has ``rows``; ``role`` names the parts that hold the targets."""
    classes = (*retained, *targets)
    novel = parts.get("control test") if role == "forget" else None
    return Case(
        retain_train=_view(parts["retain train"], rows, classes),
        retain_test=_view(parts["retain test"], rows, classes),
        target_train=_view(parts[f"{role} train"], rows, classes),
        target_test=_view(parts[f"{role} test"], rows, classes),
        head=_arrange_head(head, rows, classes),
        retained=len(retained),
        targets=len(targets),
        novel=None if novel is None else _view(novel, rows, classes),
    )


def mask_head(case: Case) -> Case:
    """The cautionary model: the same network, its target rows blanked so that they never win.

    It names no target any more and has forgotten nothing. Features stay as they are.
    """
    names = case.target_labels
    kept = np.delete(case.target_test.logits, names, axis=1)
    floor = min(float(kept.max(1).min()), float(case.retain_test.logits.max(1).min())) - MASK_MARGIN

    def blank(view: View) -> View:
        logits = view.logits.copy()
        logits[:, names] = floor
        return dataclasses.replace(view, logits=logits)

    weight, bias = case.head.weight.copy(), case.head.bias.copy()
    weight[names], bias[names] = 0.0, floor
    return dataclasses.replace(
        case,
        head=Head(weight, bias),
        retain_train=blank(case.retain_train),
        retain_test=blank(case.retain_test),
        target_train=blank(case.target_train),
        target_test=blank(case.target_test),
        novel=None if case.novel is None else blank(case.novel),
    )


def balanced(view: View, each: int, seed: int) -> Integers:
    """Positions of ``each`` images of every class (fewer where there are fewer), chosen by ``seed``."""
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(np.flatnonzero(view.labels == c))[:each] for c in np.unique(view.labels)]
    return np.sort(np.concatenate(chosen))


def fewest(*views: View) -> int:
    """Images of the class that has the fewest in any of these views."""
    return min(int(np.unique(v.labels, return_counts=True)[1].min()) for v in views)


def _view(observed: Observed, rows: Sequence[str], classes: Sequence[str]) -> View:
    position = {name: index for index, name in enumerate(classes)}
    labels = np.array([position.get(name, -1) for name in observed.names], dtype=np.int64)
    return View(dict(observed.depths), _arrange(observed.logits, rows, classes), labels)


def _arrange(logits: Floats, rows: Sequence[str], classes: Sequence[str]) -> Floats:
    column = {name: index for index, name in enumerate(rows)}
    missing = np.full(len(logits), -np.inf, dtype=logits.dtype)
    order = [logits[:, column[c]] if c in column else missing for c in classes]
    order += [logits[:, i] for name, i in column.items() if name not in set(classes)]
    return np.stack(order, axis=1)


def _arrange_head(head: Head, rows: Sequence[str], classes: Sequence[str]) -> Head:
    column = {name: index for index, name in enumerate(rows)}
    blank = np.zeros(head.weight.shape[1], dtype=head.weight.dtype)
    level = head.bias.mean()
    weight = np.stack([head.weight[column[c]] if c in column else blank for c in classes])
    bias = np.array([head.bias[column[c]] if c in column else level for c in classes], dtype=head.bias.dtype)
    return Head(weight, bias)
