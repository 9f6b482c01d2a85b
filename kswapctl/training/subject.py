"""The network under operation: the stack folded in, fresh adapters in it, cut at the first adapted block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kswapctl.errors import DivergedError
from kswapctl.models.blocks import Block
from kswapctl.models.cut import cut
from kswapctl.models.depths import pooled
from kswapctl.models.heads import GrowingHead, classifier_path
from kswapctl.models.lora import Adapter, Layer, Shape, extract, fresh_layers
from kswapctl.models.threads import run_spread
from kswapctl.models.weights import Weights
from kswapctl.tasks import Task
from kswapctl.training.team import Team


@dataclass
class Subject:
    """A network with fresh adapters: ``forward(below(images))`` gives its features and outputs."""

    model: nn.Module
    """The whole network up to the classifier; frozen, in ``dtype`` but for its normalisation."""
    below: nn.Module
    """Images to the input of the first adapted block."""
    above: nn.Module
    """From there to the classifier's input; runs with the changed weights."""
    head: nn.Module
    """The classifier, in fp32."""
    path: str
    """Where the classifier stands in the network."""
    layers: dict[str, Layer]
    """The adapted layers by path."""
    every: tuple[Block, ...]
    """All blocks of the network that can be adapted."""
    blocks: tuple[Block, ...]
    """The adapted blocks."""
    shape: Shape
    dtype: torch.dtype
    """Of the forward and backward; factors, sums and the classifier stay fp32."""
    watched: tuple[str, ...] = ()
    """Paths of blocks whose pooled outputs stand before the features."""
    room: int = 0
    """Most bytes that a classifier's step keeps for its way back; the rest is computed again. 0: no limit."""
    widths: tuple[int, ...] = ()
    """Columns of the features by depth, the classifier's input last; known after the first run."""

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        every: Sequence[Block],
        blocks: Sequence[Block],
        shape: Shape,
        dtype: torch.dtype = torch.float32,
    ) -> Subject:
        """Take the classifier off ``model``, cut it below the first of ``blocks``, and lower it to ``dtype``.

        ``model`` is changed and serves nothing else afterwards.
        """
        path = classifier_path(model)
        head = model.get_submodule(path)
        model.requires_grad_(False).eval()
        model.set_submodule(path, nn.Identity())
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", next(model.parameters()).is_cuda)  # noqa: B010 - plain is faster on a CPU
        layers = fresh_layers(model, blocks, shape)
        _lower(model, dtype)
        below, above = _halves(model, path, every, blocks)
        return cls(model, below, above, head, path, layers, tuple(every), tuple(blocks), shape, dtype)

    def classifier(self, task: Task) -> nn.Module:
        """The classifier that decides, in the columns of the task's items."""
        return self.head

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by block: A and B of each layer in turn, or the layers' whole weights."""
        return {b.name: [p for layer in b.layers for p in self.layers[layer].trained] for b in self.blocks}

    def emptied(self) -> dict[str, list[nn.Parameter]]:
        """By block, the trained parameters that are zero where the block is unchanged: B, unless weights are whole."""
        if self.shape.whole:
            return {}
        return {b.name: [self.layers[layer].b for layer in b.layers] for b in self.blocks}

    def autocast(self) -> torch.autocast:
        """Mixed precision in the subject's dtype; off for fp32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def forward(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) features before the classifier, behind those of watched blocks, and (B, K) outputs, both fp32."""
        features = self.features(activations)
        return features, self.outputs(features)

    def watch(self, paths: tuple[str, ...]) -> None:
        """Put the pooled outputs of these blocks before the features."""
        self.watched = paths

    def see(self, activations: Tensor, team: Team, count: int) -> tuple[Tensor, Tensor]:
        """Features and outputs of a whole batch of ``count``, of which each process ran its share."""
        features = team.join(self.features(activations), count)
        return features, self.outputs(features)

    def features(self, activations: Tensor) -> Tensor:
        """(B, D) features before the classifier, behind those of watched blocks, fp32."""
        weights = {f"{path}.weight": layer.now().to(self.dtype) for path, layer in self.layers.items()}

        def run(module: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
            seen: list[Tensor] = []
            within = dict(module.named_modules())
            blocks = [within[path] for path in self.watched if path in within]  # what lies below stays as it is
            hooks = [
                block.register_forward_hook(lambda block, _, output: seen.append(pooled(block, output).float()))
                for block in blocks
            ]
            try:
                with self.autocast():
                    last: Tensor = functional_call(module, weights, (inputs,))
            finally:
                for hook in hooks:
                    hook.remove()
            seen.append(last.float())
            self.widths = tuple(f.shape[1] for f in seen)
            return torch.cat(seen, dim=1)

        return run_spread(run, self.above, weights, activations, self.room)

    def outputs(self, features: Tensor) -> Tensor:
        """(B, K) outputs from what :meth:`features` gave."""
        outputs: Tensor = self.head(features[:, -self.widths[-1] :])
        return outputs

    def lift(self, count: int) -> nn.Module:
        """Train the first ``count`` adapted blocks no longer and cut above them.

        Returns what lies between the old cut and the new one; activations must pass through it.
        """
        for block in self.blocks[:count]:
            for layer in block.layers:
                del self.layers[layer]
        between, above = _halves(self.above, self.path, self.every, self.blocks[count:])
        self.blocks, self.above = self.blocks[count:], above
        return between

    def grow(self, rows: Tensor, bias: Tensor) -> None:
        """Append trainable rows (new, D) with ``bias`` (new,) to the classifier."""
        assert isinstance(self.head, nn.Linear)
        self.head = GrowingHead(self.head, rows, bias)

    def first_rows(self, new: int) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of ``new`` rows to begin with; None: their classes' features tell them."""
        return None

    def heads(self) -> dict[str, nn.Module]:
        """The classifier as it is, for :meth:`put_back`."""
        return {self.path: self.head}

    def put_back(self, heads: Mapping[str, nn.Module]) -> None:
        """Undo :meth:`grow`."""
        self.head = heads[self.path]

    def new_rows(self) -> list[nn.Parameter]:
        """Weight and bias of the classes being learned; empty where the classifier does not grow."""
        return [self.head.rows, self.head.bias] if isinstance(self.head, GrowingHead) else []

    def known_rows(self) -> int:
        """Rows of the classifier before the operation."""
        known = self.head.known if isinstance(self.head, GrowingHead) else self.head
        assert isinstance(known, nn.Linear)
        return known.out_features

    def adapter(self) -> Adapter:
        """The change so far, as an adapter."""
        head: dict[str, Tensor] = {}
        if isinstance(self.head, GrowingHead):
            weight, bias = self.head.weights()
            head = {f"{self.path}.weight": weight, f"{self.path}.bias": bias}
        return extract(self.layers, self.shape, head)

    def settle(self) -> float:
        """Bring whole weights to what the adapters can store; returns the share of the change's norm that is lost."""
        if not self.shape.whole:
            return 0.0
        for path, layer in self.layers.items():
            if not torch.isfinite(layer.weight).all():
                raise DivergedError(f"{path} became infinite or NaN; nothing was registered", "try a smaller lr")
        lost, size = (sum(norms) for norms in zip(*(layer.settle() for layer in self.layers.values()), strict=True))
        return (lost / size) ** 0.5 if size else 0.0


def _lower(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring everything but normalisation to ``dtype``, so that no matrix is converted again in each step."""
    for module in model.modules():
        if "norm" not in type(module).__name__.lower():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def _halves(
    model: nn.Module, path: str, every: Sequence[Block], blocks: Sequence[Block]
) -> tuple[nn.Module, nn.Module]:
    """``model`` below and above the first of ``blocks``; nothing and all of it, where it cannot be cut there."""
    below, above = cut(model, {b.name for b in every} | {path}, blocks[0].name) or (nn.Identity(), model)
    return below.eval(), above.eval()
