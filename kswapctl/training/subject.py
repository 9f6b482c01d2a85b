"""The network under operation: the stack folded in, new adapters put on, cut at the first adapted block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kswapctl.models.blocks import Block
from kswapctl.models.cut import cut
from kswapctl.models.heads import GrowingHead, classifier_path
from kswapctl.models.lora import Adapter, Layer, adapted, extract, inject


@dataclass(frozen=True)
class Shape:
    """The form of the adapters."""

    rank: int
    """Columns of B and rows of A."""
    scale: float
    """The weight change is scale * B @ A."""
    whole: bool = False
    """Train the whole weights of the adapted layers, and store the nearest adapter of ``rank``."""


@dataclass
class Subject:
    """A network with fresh adapters: ``above(below(images))`` gives its outputs."""

    model: nn.Module
    """The whole network."""
    below: nn.Module
    """Images to the input of the first adapted block; frozen."""
    above: nn.Module
    """From there to the outputs; trained."""
    groups: dict[str, list[nn.Parameter]]
    """Trained parameters by block: of the adapters, or the whole weights of their layers."""
    layers: dict[str, Layer]
    """The adapted layers by path."""
    blocks: tuple[Block, ...]
    """The adapted blocks."""
    shape: Shape

    @classmethod
    def prepare(cls, model: nn.Module, every: Sequence[Block], blocks: Sequence[Block], shape: Shape) -> Subject:
        """Put adapters of ``shape`` on ``blocks`` and cut ``model`` below the first of them, where it can be cut."""
        groups = inject(model, blocks, shape.rank, shape.scale)
        layers = adapted(model, [layer for b in blocks for layer in b.layers], shape.scale, whole=shape.whole)
        if shape.whole:
            groups = {b.name: [layers[layer].weight for layer in b.layers] for b in blocks}
        head = model.get_submodule(classifier_path(model))
        if isinstance(head, GrowingHead):
            head.rows.requires_grad_(True)
            head.bias.requires_grad_(True)
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", next(model.parameters()).is_cuda)  # noqa: B010 - plain is faster on a CPU
        parts = cut(model, {b.name for b in every} | {classifier_path(model)}, blocks[0].name)
        below, above = parts or (nn.Identity(), model)
        return cls(model.eval(), below.eval(), above.eval(), groups, layers, tuple(blocks), shape)

    @property
    def head(self) -> nn.Module:
        """The classifier."""
        return self.model.get_submodule(classifier_path(self.model))

    def forward(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) features before the classifier and (B, K) outputs."""
        features: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        try:
            outputs = self.above(activations)
        finally:
            hook.remove()
        return features[0], outputs

    def new_rows(self) -> list[nn.Parameter]:
        """Weight and bias of the classes being learned; empty where the classifier does not grow."""
        head = self.head
        return [head.rows, head.bias] if isinstance(head, GrowingHead) else []

    def known_rows(self) -> int:
        """Rows of the classifier before the operation."""
        head = self.head
        known = head.known if isinstance(head, GrowingHead) else head
        assert isinstance(known, nn.Linear)
        return known.out_features

    def adapter(self) -> Adapter:
        """The change so far, as an adapter."""
        path = classifier_path(self.model)
        head: dict[str, Tensor] = {}
        if isinstance(self.head, GrowingHead):
            weight, bias = self.head.weights()
            head = {f"{path}.weight": weight, f"{path}.bias": bias}
        return extract(self.model, self.layers, self.shape.rank, self.shape.scale, head)

    def settle(self) -> float:
        """Bring whole weights to what the adapters can store; returns the share of the change's norm that is lost."""
        if not self.shape.whole:
            return 0.0
        lost, size = (sum(norms) for norms in zip(*(layer.settle() for layer in self.layers.values()), strict=True))
        return (lost / size) ** 0.5 if size else 0.0


def features_of(model: nn.Module, inputs: Tensor, batch: int = 128) -> Tensor:
    """(N, D) features before the classifier, of normalised images (N, C, H, W)."""
    collected: list[Tensor] = []
    head = model.get_submodule(classifier_path(model))
    hook = head.register_forward_pre_hook(lambda _, args: collected.append(args[0]))
    try:
        with torch.no_grad():
            for part in inputs.split(batch):
                model(part)
    finally:
        hook.remove()
    return torch.cat(collected)
