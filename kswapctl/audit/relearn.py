"""M6a: how fast does the classifier alone learn the forgotten classes again, on frozen features?

The curve of Figure 6 in Zhao et al., Continual Forgetting for Pre-trained Vision Models (GS-LoRA), CVPR 2024. From the
model's own rows it mostly shows how far they were pushed away, and it votes only where it finds out the head-masked
model nevertheless; from blank rows it shows what the features hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kswapctl.audit.cases import Case, Head, View, balanced
from kswapctl.audit.evidence import LAST, Floats
from kswapctl.audit.recovery import Scores

STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Where the curve is read; the score of an image is the mean over these readings."""
EACH = 10
"""Images of every class."""
DRAWS = 3
BATCH, RATE = 32, 1e-3


@dataclass(frozen=True)
class Curve:
    """Accuracy while a model learns the forgotten classes again."""

    steps: tuple[int, ...]
    """From 0."""
    forgotten: tuple[float, ...]
    retained: tuple[float, ...]
    scores: Scores
    """Of each target test image: its mean over the readings after step 0."""

    def steps_to(self, level: float) -> int | None:
        """The first reading at which forgotten accuracy is at least ``level``; None where it never is."""
        return next((s for s, a in zip(self.steps, self.forgotten, strict=True) if a >= level), None)


def relearn_head(case: Case, seed: int) -> Curve:
    """Train ``case``'s own classifier, with few images of every class."""
    return _mean_curve([_train(case, case.head, seed * DRAWS + draw) for draw in range(DRAWS)], case)


def relearn_blank(case: Case, seed: int) -> Curve:
    """The same with the rows of the target classes blank, on features of one scale, so that all models start alike."""
    case = standardised(case)
    weight, bias = case.head.weight.copy(), case.head.bias.copy()
    weight[case.target_labels], bias[case.target_labels] = 0.0, bias[: case.retained].mean()
    head = Head(weight, bias)
    return _mean_curve([_train(case, head, seed * DRAWS + draw) for draw in range(DRAWS)], case)


def standardised(case: Case) -> Case:
    """Features at mean 0 and deviation 1 over the retained training images; the head computes what it did."""
    centre, spread = case.retain_train.features.mean(0), case.retain_train.features.std(0) + 1e-6

    def scaled(view: View) -> View:
        return dataclasses.replace(view, depths={LAST: (view.features - centre) / spread})

    return dataclasses.replace(
        case,
        head=Head(case.head.weight * spread, case.head.bias + case.head.weight @ centre),
        retain_train=scaled(case.retain_train),
        retain_test=scaled(case.retain_test),
        target_train=scaled(case.target_train),
        target_test=scaled(case.target_test),
    )


def read_curve(readings: Iterable[tuple[Tensor, Tensor]], steps: tuple[int, ...], case_labels: Tensor) -> Curve:
    """A curve from (T_hits, R_hits) at each of ``steps``: whether each target and retained image is named rightly."""
    gone, kept = zip(*[(g.double(), k.double()) for g, k in readings], strict=True)
    values = torch.stack(gone[1:]).mean(0).numpy()
    means = tuple(g.mean().item() for g in gone), tuple(k.mean().item() for k in kept)
    return Curve(steps, *means, Scores(values, case_labels.numpy()))


def batches(count: int, steps: int, seed: int) -> Iterator[Tensor]:
    """``steps`` batches of positions below ``count``, shuffled anew each time through."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(left) < min(BATCH, count):
            left = torch.randperm(count, generator=generator)
        yield left[:BATCH]
        left = left[BATCH:]


def few(case: Case, seed: int) -> tuple[View, View]:
    """EACH training images of every retained and every target class."""
    kept, gone = balanced(case.retain_train, EACH, seed), balanced(case.target_train, EACH, seed)
    return case.retain_train.take(kept), case.target_train.take(gone)


def _train(case: Case, head: Head, seed: int) -> Curve:
    kept, gone = few(case, seed)
    features = torch.from_numpy(np.concatenate([kept.features, gone.features])).float()
    labels = torch.from_numpy(np.concatenate([kept.labels, gone.labels]))
    weight = torch.from_numpy(head.weight).float().clone().requires_grad_(True)
    bias = torch.from_numpy(head.bias).float().clone().requires_grad_(True)
    optimiser = torch.optim.AdamW([weight, bias], lr=RATE)
    readings = [_read(case, weight, bias)]
    for step, batch in enumerate(batches(len(labels), STEPS[-1], seed), start=1):
        loss = F.cross_entropy(F.linear(features[batch], weight, bias), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in STEPS:
            readings.append(_read(case, weight, bias))
    return read_curve(readings, (0, *STEPS), torch.from_numpy(case.target_test.labels))


@torch.no_grad()
def _read(case: Case, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    def hits(view: View) -> Tensor:
        named = F.linear(torch.from_numpy(view.features).float(), weight, bias).argmax(1)
        return named == torch.from_numpy(view.labels)

    return hits(case.target_test), hits(case.retain_test)


def _mean_curve(curves: list[Curve], case: Case) -> Curve:
    def mean(rows: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(np.mean(list(rows), axis=0).tolist())

    values: Floats = np.mean([c.scores.values for c in curves], axis=0)
    forgotten, retained = mean(c.forgotten for c in curves), mean(c.retained for c in curves)
    return Curve(curves[0].steps, forgotten, retained, Scores(values, case.target_test.labels))
