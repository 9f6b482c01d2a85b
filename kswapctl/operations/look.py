"""Measure versions on the test part, and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from kswap_registry import Registry, Version

from kswapctl.analysis.layers import BlockChange, changes_by_block
from kswapctl.data.images import Images
from kswapctl.data.sets import Chosen, count, gather, once
from kswapctl.data.sources import open_source
from kswapctl.data.splits import all_tested, test_part
from kswapctl.errors import DataError, UsageError
from kswapctl.evaluation.predict import answer
from kswapctl.evaluation.scores import Evaluation, evaluate
from kswapctl.operations.versions import Composed, load_version
from kswapctl.progress import Progress
from kswapctl.runtime import pick_device
from kswapctl.spec import Knowledge
from kswapctl.tasks import TASKS, Marks


@dataclass(frozen=True)
class Difference:
    """Two versions side by side."""

    accuracies: dict[str, tuple[float, float]]
    """Set (as the second version sees it) to the accuracy of the first and the second; empty without data."""
    blocks: tuple[BlockChange, ...]
    metric: str = ""
    """What the accuracies are of this task; empty without data."""


def test_images(composed: Composed, data: Sequence[str], skip_bad: bool, progress: Progress) -> Images:
    """The test images of every class the version has a row for, each class from the first source that has it.

    Where boxes are marked these are all of that source: what is answered to images without one is wrong.
    """
    chosen = _choose(composed.knowledge, data, TASKS[composed.spec.task].marks)
    progress.stage("reading images", count(chosen))
    images = gather(chosen, composed.spec.preprocessing, skip_bad, progress.advance)
    for bad in images.bad:
        progress.note(f"skipped: {bad}")
    return images


def _choose(knowledge: Knowledge, data: Sequence[str], marks: Marks) -> Chosen:
    names = list(data) or list(knowledge.sources)
    if not names:
        raise UsageError("no data to evaluate on", "name it: --data DIR")
    chosen: Chosen = []
    left = set(knowledge.classes)
    for name in names:
        if not left:
            break
        source = open_source(name)
        source.check_marks(marks)
        here = {s.label for s in test_part(source, left & set(source.classes))}
        if here:
            samples = all_tested(source) if source.marks == "boxes" else test_part(source, here)
            chosen.append((source, once(source, samples)))
            left -= here
    if not count(chosen):
        raise DataError(
            f"{', '.join(names)} has no test image of any class of the model",
            "classes are matched by name, and beside a train part images to test on lie in a test part",
        )
    return chosen


def evaluate_version(
    registry: Registry, version: Version, data: Sequence[str], skip_bad: bool, device: str, progress: Progress
) -> Evaluation:
    """Scores of ``version`` and its base on the test part of ``data``, else of what its stack was trained with."""
    composed = load_version(registry, version)
    base = load_version(registry, registry.resolve(f"{version.model}@base"))
    images = test_images(composed, data, skip_bad, progress)
    return _evaluate((composed, base), images, pick_device(device), progress)


def _evaluate(pair: tuple[Composed, Composed], images: Images, device: torch.device, progress: Progress) -> Evaluation:
    """Scores of the first beside the second's, by the sets of the first."""
    progress.stage("evaluating", 2 * len(images))
    task, knowledge = TASKS[pair[0].spec.task], pair[0].knowledge
    others = tuple(name for name in pair[1].knowledge.classes if name not in knowledge.classes)
    position = {name: row for row, name in enumerate(knowledge.classes + others)}
    answers, before = (
        task.renamed(
            answer(task, c.network().to(device), images.pixels, c.spec.preprocessing, progress.advance),
            torch.tensor([position[name] for name in c.knowledge.classes]),
        )
        for c in pair
    )
    return evaluate(task, answers, before, images.targets(knowledge.classes), knowledge, others)


def compare(
    registry: Registry, first: Version, second: Version, data: Sequence[str], skip_bad: bool, progress: Progress
) -> Difference:
    """What changed from ``first`` to ``second``: accuracy by set, and weights by block."""
    one, two = load_version(registry, first), load_version(registry, second)
    named = {b["name"]: b["layers"] for b in registry.model(first.model).spec["blocks"]}
    blocks = changes_by_block(one.weights, two.weights, named)
    if not data and not two.knowledge.sources:
        return Difference({}, blocks)
    images = test_images(two, data, skip_bad, progress)
    scores = _evaluate((two, one), images, pick_device("cpu"), progress)
    return Difference({s.name: (s.base, s.accuracy) for s in scores.sets}, blocks, scores.metric)
