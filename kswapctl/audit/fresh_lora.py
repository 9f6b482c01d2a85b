"""M6b: how fast do fresh adapters and the classifier together learn the forgotten classes again?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kswapctl.audit.cases import Head
from kswapctl.audit.relearn import Curve, batches, read_curve
from kswapctl.data.images import normalise
from kswapctl.models.blocks import choose_blocks, find_blocks
from kswapctl.models.heads import classifier_path
from kswapctl.models.lora import Shape
from kswapctl.spec import Preprocessing
from kswapctl.training.subject import Subject

STEPS = (1, 2, 5, 10, 20, 50)
RANK, SCALE, RATE = 8, 1.0, 5e-4


@dataclass(frozen=True)
class Labelled:
    """Pixels with their labels."""

    pixels: Tensor
    """(N, C, H, W) uint8, or what the frozen part makes of them."""
    labels: Tensor
    """(N,)."""


@dataclass(frozen=True)
class Lesson:
    """What the network is taught again, and what it is examined on."""

    train: Labelled
    """EACH images of every class."""
    target_test: Labelled
    retain_test: Labelled
    preprocessing: Preprocessing


def relearn_lora(
    network: nn.Module, head: Head, blocks: str, lesson: Lesson, seed: int, report: Callable[[int], None]
) -> Curve:
    """Train adapters of rank 8 on ``blocks`` of ``network`` (which is changed), and ``head`` in its classifier's place.

    The forgotten rows of ``head`` should be blank: all models then start alike.
    """
    torch.manual_seed(seed)  # the adapters' first values
    classifier = nn.Linear(head.weight.shape[1], len(head.weight))
    path = classifier_path(network)
    every = find_blocks(network, path)
    network.set_submodule(path, classifier)
    subject = Subject.prepare(network, every, choose_blocks(every, blocks), Shape(RANK, SCALE))
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(head.weight))
        classifier.bias.copy_(torch.from_numpy(head.bias))
    classifier.requires_grad_(True)
    parameters = [*classifier.parameters(), *(p for group in subject.groups.values() for p in group)]
    optimiser = torch.optim.AdamW(parameters, lr=RATE)
    train, *tests = (_below(subject, part, lesson) for part in (lesson.train, lesson.target_test, lesson.retain_test))
    readings = [_read(subject, tests)]
    for step, batch in enumerate(batches(len(train.labels), STEPS[-1], seed), start=1):
        loss = F.cross_entropy(subject.forward(train.pixels[batch])[1], train.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        report(1)
        if step in STEPS:
            readings.append(_read(subject, tests))
    return read_curve(readings, (0, *STEPS), lesson.target_test.labels)


@torch.no_grad()
def _below(subject: Subject, part: Labelled, lesson: Lesson) -> Labelled:
    """``part`` as it reaches the first adapted block: what lies below never changes."""
    inputs = normalise(part.pixels, lesson.preprocessing)
    return Labelled(torch.cat([subject.below(x) for x in inputs.split(128)]), part.labels)


@torch.no_grad()
def _read(subject: Subject, parts: Sequence[Labelled]) -> tuple[Tensor, Tensor]:
    target, retain = (
        torch.cat([subject.forward(x)[1].argmax(1) for x in part.pixels.split(128)]) == part.labels for part in parts
    )
    return target, retain
