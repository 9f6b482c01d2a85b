"""Measure many versions over the same test images: reading them, the base's answers, and what all share come once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from kswap_registry import Registry, Version
from torch import Tensor, nn
from torch.func import functional_call

from kswapctl.data.images import Images, normalise
from kswapctl.evaluation.predict import answer, batch_of
from kswapctl.evaluation.scores import Evaluation, evaluate
from kswapctl.models.blocks import find_blocks
from kswapctl.models.heads import classifier_path
from kswapctl.operations.look import test_images
from kswapctl.operations.trace import changed_weights, cut_below
from kswapctl.operations.versions import Composed, load_version
from kswapctl.progress import Silent
from kswapctl.tasks import TASKS, Task


class Gauge:
    """Scores of the versions of one model, as ``evaluate_version`` gives them, on the CPU."""

    def __init__(self, registry: Registry, model: str) -> None:
        """Nothing is read before the first version is measured."""
        self.registry = registry
        self.base = load_version(registry, registry.resolve(f"{model}@base"))
        self.part: tuple[object, Images, Tensor] | None = None
        """The classes and data last measured on, their images, and what the base answers: one set is held at a time."""
        self.shared: tuple[object, Tensor] = ((), torch.empty(0))
        """What the activations below the last cut are of, and they."""

    def scores(self, version: Version, data: Sequence[str]) -> Evaluation:
        """Scores of ``version`` and of the base on the test part of ``data``."""
        composed = load_version(self.registry, version)
        knowledge, task = composed.knowledge, TASKS[composed.spec.task]
        key = (*data, "", *knowledge.classes)
        if self.part is None or self.part[0] != key:
            self.part = None  # not two at once
            images = test_images(composed, data, skip_bad=False, progress=Silent())
            before = answer(task, self.base.network(), images.pixels, self.base.spec.preprocessing)
            self.part = key, images, before
        _, images, before = self.part
        answers = self._answers(task, composed, images, key)
        return evaluate(task, answers, before, images.targets(knowledge.classes), knowledge)

    @torch.inference_mode()
    def _answers(self, task: Task, composed: Composed, images: Images, key: object) -> Tensor:
        changed = changed_weights([self.base, composed])
        network = self.base.network()
        below, above = cut_below(network, changed)
        weights = {name: composed.weights[name] for name in changed}
        border = (key, _touched(network, changed), isinstance(below, nn.Identity))
        if self.shared[0] != border:
            self.shared = ((), torch.empty(0))
            fed = self.base.spec.preprocessing
            parts = images.pixels.split(batch_of(images.pixels))
            self.shared = border, torch.cat([below(normalise(part, fed)) for part in parts])
        size = (images.pixels.shape[-2], images.pixels.shape[-1])
        shared = self.shared[1].split(batch_of(images.pixels))
        return torch.cat([task.answers(functional_call(above, weights, (part,)).float(), size) for part in shared])


def _touched(network: nn.Module, changed: Sequence[str]) -> tuple[str, ...]:
    """The blocks in which a weight is changed: where they begin is where the network is cut."""
    blocks = find_blocks(network, classifier_path(network))
    return tuple(b.name for b in blocks if any(n.startswith(f"{b.name}.") for n in changed))[:1]
