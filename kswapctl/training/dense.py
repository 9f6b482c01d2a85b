"""A network that answers for many places of an image, under operation: whole, with its classifiers inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kswapctl.models.blocks import Block
from kswapctl.models.dense import Dense
from kswapctl.models.heads import Columns, blank, classifier_path, grow, growing, head_paths, known_rows, spare_rows
from kswapctl.models.lora import Adapter, Shape, extract, fresh_layers
from kswapctl.tasks import Task
from kswapctl.training.subject import Subject
from kswapctl.training.team import Team


class DenseSubject(Subject):
    """Runs uncut: images are its activations, and it gives features and outputs in one run.

    A step keeps all that it needs for its way back, whatever ``room`` there is.
    """

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        every: Sequence[Block],
        blocks: Sequence[Block],
        shape: Shape,
        dtype: torch.dtype = torch.float32,
    ) -> Subject:
        """Freeze ``model``; its weights stay fp32, and ``dtype`` is that of the arithmetic."""
        model.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # convolutions are faster so
        layers = fresh_layers(model, blocks, shape)
        path = classifier_path(model)
        head = model.get_submodule(path)
        return cls(model, nn.Identity(), model, head, path, layers, tuple(every), tuple(blocks), shape, dtype)

    def classifier(self, task: Task) -> nn.Module:
        """The classifier that decides, in the columns of the task's items."""
        return Columns(self.model.get_submodule(self.path), spare_rows(self.model), task.spare)

    def forward(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Features before the classifier and outputs, in the places that the task reads, fp32."""
        weights = {f"{path}.weight": layer.now() for path, layer in self.layers.items()}
        with self.autocast():
            images = activations.contiguous(memory_format=torch.channels_last)
            features, outputs = functional_call(self.model, weights, (images, True))
        self.widths = (features.shape[-1],)
        return features.float(), outputs.float()

    def watch(self, paths: tuple[str, ...]) -> None:
        """Nothing: what a block says of an image tells not which of its items it is about."""

    def see(self, activations: Tensor, team: Team, count: int) -> tuple[Tensor, Tensor]:
        """Features and outputs of a whole batch of ``count``, of which each process ran its share."""
        features, outputs = self.forward(activations)
        return team.join(features, count), team.join(outputs, count)

    def lift(self, count: int) -> nn.Module:
        """Train the first ``count`` adapted blocks no longer; nothing lies between, as there is no cut."""
        for block in self.blocks[:count]:
            for layer in block.layers:
                del self.layers[layer]
        self.blocks = self.blocks[count:]
        return nn.Identity()

    def grow(self, rows: Tensor, bias: Tensor) -> None:
        """Append trainable rows (new, D) with ``bias`` (new,) to the classifier that decides, blank ones to others."""
        grow(self.model, self.path, rows, bias)
        for other in head_paths(self.model):
            known = self.model.get_submodule(other)
            if isinstance(known, nn.Linear | nn.Conv2d):
                grow(self.model, other, *blank(known, len(rows)))

    def first_rows(self, new: int) -> tuple[Tensor, Tensor] | None:
        """Rows of classes that nothing is taken for yet, where features do not tell classes apart; else None."""
        known = self.model.get_submodule(self.path)
        assert isinstance(self.model, Dense)
        assert isinstance(known, nn.Linear | nn.Conv2d)
        return None if self.model.imprints else blank(known, new)

    def heads(self) -> dict[str, nn.Module]:
        """The classifiers as they are, for :meth:`put_back`."""
        return {path: self.model.get_submodule(path) for path in head_paths(self.model)}

    def put_back(self, heads: Mapping[str, nn.Module]) -> None:
        """Undo :meth:`grow`."""
        for path, head in heads.items():
            self.model.set_submodule(path, head)

    def new_rows(self) -> list[nn.Parameter]:
        """Weights and biases of the classes being learned; empty where no classifier grows."""
        heads = {id(head): head for head in growing(self.model).values()}  # a tied one stands there once
        return [parameter for head in heads.values() for parameter in (head.rows, head.bias)]

    def known_rows(self) -> int:
        """Classes known before the operation."""
        return known_rows(self.model)

    def adapter(self) -> Adapter:
        """The change so far, as an adapter."""
        tensors: dict[str, Tensor] = {}
        for path, grown in growing(self.model).items():
            tensors[f"{path}.weight"], tensors[f"{path}.bias"] = grown.weights()
        return extract(self.layers, self.shape, tensors)
