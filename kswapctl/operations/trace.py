"""Several versions of one model over the same images: what they have in common runs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from kswap_registry import Registry, Version
from torch import Tensor, nn

from kswapctl.data.images import Images
from kswapctl.evaluation.predict import answer_each
from kswapctl.evaluation.scores import Evaluation, evaluate
from kswapctl.models.blocks import Block, find_blocks
from kswapctl.models.cut import cut
from kswapctl.models.dense import Dense
from kswapctl.models.heads import classifier_path
from kswapctl.operations.look import test_images
from kswapctl.operations.versions import Composed, load_version
from kswapctl.progress import Progress
from kswapctl.runtime import pick_device
from kswapctl.tasks import TASKS, Task


@dataclass(frozen=True)
class Trace:
    """A version of a stack, and how it does."""

    version: Version
    scores: Evaluation


def trace(
    registry: Registry, version: Version, data: Sequence[str], skip_bad: bool, device: str, progress: Progress
) -> list[Trace]:
    """The base and every version of the stack of ``version``, each on the sets that it knows, on the test part.

    Images that cannot be read are an error that names them, or with ``skip_bad`` left out.
    """
    base = registry.resolve(f"{version.model}@base")
    versions = [load_version(registry, v) for v in (base, *registry.stack(version))]
    images = test_images(versions[-1], data, skip_bad=skip_bad, progress=progress)
    task = TASKS[versions[0].spec.task]
    answers = answer_versions(task, versions, images, device, progress)
    every = images.targets(versions[-1].knowledge.classes)
    traces = []
    for composed, mine in zip(versions, answers, strict=True):
        chosen = _known(images, composed.knowledge.classes)
        targets = (images.targets(composed.knowledge.classes) if images.marks else every)[chosen]
        scores = evaluate(task, mine[chosen], answers[0][chosen], targets, composed.knowledge)
        traces.append(Trace(composed.version, scores))
    return traces


def _known(images: Images, classes: Sequence[str]) -> list[int]:
    """Positions of the images that count: one of a class that comes later has no set yet."""
    return [i for i, sample in enumerate(images.samples) if images.marks or sample.label in classes]


def answer_versions(
    task: Task, versions: Sequence[Composed], images: Images, device: str, progress: Progress
) -> list[Tensor]:
    """What ``task`` keeps of each version's outputs, each with its own number of classes."""
    where = pick_device(device)
    network = versions[0].network().to(where)
    progress.stage("evaluating", len(images))
    changed = changed_weights(versions)
    weights = [{name: c.weights[name].to(where) for name in changed} for c in versions]
    halves = cut_below(network, changed)
    return answer_each(task, halves, weights, images.pixels, versions[0].spec.preprocessing, progress.advance)


def changed_weights(versions: Sequence[Composed]) -> list[str]:
    """Names of the weights that are not the same in all versions."""
    first = versions[0].weights
    return [n for n, value in first.items() if any(not torch.equal(value, c.weights[n]) for c in versions[1:])]


def cut_below(network: nn.Module, changed: Sequence[str]) -> tuple[nn.Module, nn.Module]:
    """``network`` cut below the first block that holds a changed weight; uncut where something else changed."""
    if isinstance(network, Dense):
        return nn.Identity(), network
    path = classifier_path(network)
    blocks = find_blocks(network, path)
    inside = [n for n in changed if not n.startswith(f"{path}.")]
    touched = [b for b in blocks if any(_holds(b, n) for n in inside)]
    if all(any(_holds(b, n) for b in blocks) for n in inside):
        border = touched[0].name if touched else path
        if halves := cut(network, {b.name for b in blocks} | {path}, border):
            return halves
    return nn.Identity(), network


def _holds(block: Block, name: str) -> bool:
    return name.startswith(f"{block.name}.")
