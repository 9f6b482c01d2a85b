"""M6b: how fast do fresh adapters and the classifier together learn the forgotten classes again?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kswapctl.audit.cases import Head
from kswapctl.audit.relearn import Curve, batches, read_curve
from kswapctl.data.images import normalise
from kswapctl.models.blocks import choose_blocks, find_blocks
from kswapctl.models.heads import classifier_path
from kswapctl.spec import Preprocessing
from kswapctl.training.subject import Shape, Subject

STEPS = (1, 2, 5, 10, 20, 50)
RANK, SCALE, RATE = 8, 1.0, 5e-4


@dataclass(frozen=True)
class Labelled:
    """Pixels with their labels."""

    pixels: Tensor
    """(N, C, H, W) uint8."""
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
    inputs = normalise(lesson.train.pixels, lesson.preprocessing)
    readings = [_read(network, lesson)]
    for step, batch in enumerate(batches(len(inputs), STEPS[-1], seed), start=1):
        loss = F.cross_entropy(network(inputs[batch]), lesson.train.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        report(1)
        if step in STEPS:
            readings.append(_read(network, lesson))
    return read_curve(readings, (0, *STEPS), lesson.target_test.labels)


@torch.no_grad()
def _read(network: nn.Module, lesson: Lesson) -> tuple[Tensor, Tensor]:
    def hits(part: Labelled) -> Tensor:
        inputs = normalise(part.pixels, lesson.preprocessing)
        return torch.cat([network(x).argmax(1) for x in inputs.split(128)]) == part.labels

    return hits(lesson.target_test), hits(lesson.retain_test)
