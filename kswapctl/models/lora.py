"""LoRA adapters in PEFT's own form: trained, stored as a folder, folded into weights.

While training, a layer's weight and its change are added before they meet the images, once a step, instead of each
running beside the other: half the operations, and the network computes what the folded weights will compute.
The only file that imports peft. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from kswapctl.errors import DataError, UnsafeInputError, WrongBaseError
from kswapctl.models.blocks import Block
from kswapctl.models.weights import Weights, fingerprint, read, write

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before each of the network's own names."""


@dataclass(frozen=True)
class Adapter:
    """The change of one operation: low-rank factors by layer, and the classifier where it grew."""

    rank: int
    """Columns of B and rows of A."""
    scale: float
    """The weight change of a layer is ``scale * B @ A``."""
    factors: dict[str, tuple[Tensor, Tensor]]
    """Layer path to A (rank, in) or (rank, in, k, k), and B (out, rank) or (out, rank, 1, 1)."""
    head: dict[str, Tensor]
    """Empty, or the grown classifier: path.weight (K, D) and path.bias (K,)."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its tensors and its scale."""
        return fingerprint({**self.tensors(), "scale": torch.tensor(self.scale)})

    @property
    def values(self) -> int:
        """Numbers in its factors: what the papers count as tunable, without rows for new classes."""
        return sum(a.numel() + b.numel() for a, b in self.factors.values())

    def tensors(self) -> Weights:
        """Tensors under the names PEFT writes."""
        named = {f"{PREFIX}{k}": v for k, v in self.head.items()}
        for layer, (a, b) in self.factors.items():
            named[f"{PREFIX}{layer}.lora_A.weight"] = a
            named[f"{PREFIX}{layer}.lora_B.weight"] = b
        return named

    def config(self, base: str) -> dict[str, Any]:
        """PEFT's configuration; ``base`` is the model's name, for the reader."""
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.scale * self.rank,  # type: ignore[arg-type]  # PEFT divides it, any number will do
            target_modules=sorted(self.factors),
            modules_to_save=sorted({name.rpartition(".")[0] for name in self.head}) or None,
            base_model_name_or_path=base,
        ).to_dict()
        return {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}


@dataclass(frozen=True)
class Shape:
    """The form of the adapters."""

    rank: int
    """Columns of B and rows of A."""
    scale: float
    """The weight change is scale * B @ A."""
    whole: bool = False
    """Train the whole weights of the adapted layers, and store the nearest adapter of ``rank``."""


@dataclass(frozen=True)
class Layer:
    """One adapted layer of a network in training: its change is the adapter's, and that of the weight itself."""

    weight: nn.Parameter
    """(out, in) or (out, in, k, k) in fp32, with the stack below folded in; trained only where ``Shape.whole``."""
    before: Tensor
    """The weight before the operation."""
    a: nn.Parameter
    b: nn.Parameter
    scale: float

    @classmethod
    def fresh(cls, weight: Tensor, shape: Shape) -> Layer:
        """No change yet: A starts Kaiming-uniform and B at zero, as in PEFT."""
        before = weight.detach().float()
        a = torch.empty(shape.rank, *weight.shape[1:])  # drawn on the CPU: one seed, one start, on any device
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        b = torch.zeros(len(weight), shape.rank, *[1] * (weight.dim() - 2))
        low_a, low_b = (nn.Parameter(f.to(weight.device), requires_grad=not shape.whole) for f in (a, b))
        kept = before.clone() if shape.whole else before
        return cls(nn.Parameter(kept, requires_grad=shape.whole), before, low_a, low_b, shape.scale)

    @property
    def trained(self) -> list[nn.Parameter]:
        """A and B, or the weight."""
        return [p for p in (self.a, self.b, self.weight) if p.requires_grad]

    def now(self) -> Tensor:
        """The weight with its change, in fp32; gradients flow to what is trained."""
        return self.weight if self.weight.requires_grad else self.before + delta(self.a, self.b, self.scale)

    def change(self) -> Tensor:
        """How far the layer's weight has moved, in the weight's shape; gradients flow to what is trained."""
        return self.weight - self.before if self.weight.requires_grad else delta(self.a, self.b, self.scale)

    @torch.no_grad()
    def settle(self) -> tuple[float, float]:
        """Bring the weight to what an adapter of the rank can store, and store it.

        Returns the squared norms of what was lost and of the change.
        """
        change = self.weight - self.before
        a, b = low_rank(change, len(self.a), self.scale)
        self.a.copy_(a)
        self.b.copy_(b)
        self.weight.copy_(self.before + delta(a, b, self.scale))
        lost = change - delta(a, b, self.scale)
        return lost.square().sum().item(), change.square().sum().item()


def low_rank(change: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A (rank, in, ...) and B (out, rank, ...) whose ``scale * B @ A`` is nearest to ``change`` (Eckart & Young 1936).

    Exact from the rank min(out, in) on; rows beyond it are zero.
    """
    u, s, v = torch.linalg.svd(change.float().flatten(1), full_matrices=False)
    kept = min(rank, len(s))
    root = (s[:kept] / scale).sqrt()
    a, b = change.new_zeros(rank, v.shape[1]), change.new_zeros(len(u), rank)
    a[:kept] = root[:, None] * v[:kept]
    b[:, :kept] = u[:, :kept] * root
    tail = change.shape[2:]
    return a.reshape(rank, -1, *tail), b.reshape(len(u), rank, *(1 for _ in tail))


def fresh_layers(model: nn.Module, blocks: Iterable[Block], shape: Shape) -> dict[str, Layer]:
    """By path, the layers of ``blocks`` with a change of nothing yet; ``model`` is not changed."""
    return {layer: Layer.fresh(model.get_submodule(layer).weight, shape) for b in blocks for layer in b.layers}  # type: ignore[arg-type]


def extract(layers: Mapping[str, Layer], shape: Shape, head: Weights) -> Adapter:
    """The change so far, on the CPU; layers whose change is exactly zero are left out."""
    factors = {}
    for path, layer in layers.items():
        a, b = (p.detach().float().cpu().clone() for p in (layer.a, layer.b))
        if a.any() and b.any():
            factors[path] = (a, b)
    return Adapter(shape.rank, shape.scale, factors, {k: v.float().cpu().clone() for k, v in head.items()})


def delta(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The change of one layer's weight: ``scale * B @ A``, (out, in) or (out, in, k, k), in fp32."""
    flat = b.float().flatten(1) @ a.float().flatten(1)  # (out, in * k * k)
    return (scale * flat).reshape(b.shape[0], *a.shape[1:])


def fold(weights: Mapping[str, Tensor], adapter: Adapter) -> Weights:
    """New weights with the adapter added, in fp32; ``weights`` is not changed.

    A layer that is not there, or a grown classifier that has not the rows below it, is a :class:`WrongBaseError`.
    """
    folded = dict(weights)
    for layer, (a, b) in adapter.factors.items():
        name = f"{layer}.weight"
        change = delta(a, b, adapter.scale)
        if name not in folded or folded[name].shape != change.shape:
            raise WrongBaseError(f"the adapter changes {layer}, which the model does not have in that shape")
        folded[name] = (folded[name].float() + change).to(folded[name].dtype)
    for name, grown in adapter.head.items():
        known = folded.get(name)
        if known is not None and not _grown_from(known.float(), grown):
            raise WrongBaseError(f"the adapter's classifier {name} was grown from another one")
        folded[name] = grown.clone()
    return folded


def _grown_from(known: Tensor, grown: Tensor) -> bool:
    """Whether ``grown`` has the rows of ``known``, in order: new ones come last, or before the last ("no object")."""
    more = len(grown) - len(known)
    if more < 0 or known.shape[1:] != grown.shape[1:]:
        return False
    spared = torch.cat([grown[: len(known) - 1], grown[len(grown) - 1 :]])
    return torch.equal(grown[: len(known)], known) or torch.equal(spared, known)


def compose(base: Mapping[str, Tensor], adapters: Iterable[Adapter]) -> Weights:
    """The weights of a version: the base with the adapters of its stack folded in, in order."""
    weights = dict(base)
    for adapter in adapters:
        weights = fold(weights, adapter)
    return weights


def save(adapter: Adapter, folder: Path, base: str) -> dict[str, Path]:
    """Write PEFT's two files into ``folder``; returns their paths by name."""
    files = {WEIGHTS_FILE: folder / WEIGHTS_FILE, CONFIG_FILE: folder / CONFIG_FILE}
    write(adapter.tensors(), files[WEIGHTS_FILE])
    files[CONFIG_FILE].write_text(json.dumps(adapter.config(base), indent=2, sort_keys=True) + "\n")
    return files


def load(files: Mapping[str, Path]) -> Adapter:
    """Read the two files that :func:`save` wrote; keys it would not have written are refused."""
    try:
        config = json.loads(files[CONFIG_FILE].read_text())
        rank, scale = int(config["r"]), float(config["lora_alpha"]) / int(config["r"])
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"{CONFIG_FILE} is no LoRA configuration ({error})") from error
    tensors, _ = read(files[WEIGHTS_FILE])
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    head: Weights = {}
    for name, tensor in tensors.items():
        layer, _, part = name.removeprefix(PREFIX).partition(".lora_")
        b = tensors.get(f"{PREFIX}{layer}.lora_B.weight")
        if part == "A.weight" and b is not None:
            if len(tensor) != rank or b.shape[1] != rank:
                raise WrongBaseError(f"{WEIGHTS_FILE} and {CONFIG_FILE} differ in the rank of {layer}")
            factors[layer] = (tensor, b)
        elif not part:
            head[name.removeprefix(PREFIX)] = tensor
    adapter = Adapter(rank, scale, factors, head)
    if stray := tensors.keys() - adapter.tensors().keys():
        raise UnsafeInputError(f"{WEIGHTS_FILE} holds {min(stray)!r}, which is no part of an adapter")
    return adapter
