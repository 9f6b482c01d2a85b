"""LoRA adapters in PEFT's own form: put into a network, taken out, stored as a folder, folded into weights.

The only file that imports peft. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from kswapctl.errors import DataError, UnsafeInputError, WrongBaseError
from kswapctl.models.blocks import Block
from kswapctl.models.weights import Weights, fingerprint, read, write

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before each of the network's own names."""
ACTIVE = "ks"
"""The one adapter name used inside a network; never a user's (PEFT drops keys that contain another's name)."""


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
class Layer:
    """One adapted layer of a network in training: its change is the adapter's, and that of the weight itself."""

    weight: nn.Parameter
    """(out, in) or (out, in, k, k), with the stack below folded in; trained only in the form ``whole``."""
    before: Tensor
    """The weight before the operation."""
    a: nn.Parameter
    b: nn.Parameter
    scale: float

    def change(self) -> Tensor:
        """How far the layer's weight has moved, in the weight's shape; gradients flow to what is trained."""
        low = delta(self.a, self.b, self.scale)
        return low + self.weight - self.before if self.weight.requires_grad else low

    @torch.no_grad()
    def settle(self) -> tuple[float, float]:
        """Move the whole change into the adapter, as near as its rank allows.

        Returns the squared norms of what was lost and of the change.
        """
        change = self.change()
        a, b = low_rank(change, len(self.a), self.scale)
        self.a.copy_(a)
        self.b.copy_(b)
        self.weight.copy_(self.before)
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


def adapted(model: nn.Module, layers: Iterable[str], scale: float, *, whole: bool) -> dict[str, Layer]:
    """The adapted ``layers`` of a network; with ``whole`` their weights are trained, and the adapters are not."""
    found = {}
    for layer in layers:
        a, b = _factors(model, layer)
        weight: nn.Parameter = model.get_submodule(layer).base_layer.weight  # type: ignore[union-attr, assignment]
        before = weight.detach().clone() if whole else weight.detach()
        weight.requires_grad_(whole)
        for factor in (a, b):
            factor.requires_grad_(not whole)
        found[layer] = Layer(weight, before, a, b, scale)
    return found


def inject(model: nn.Module, blocks: Iterable[Block], rank: int, scale: float) -> dict[str, list[nn.Parameter]]:
    """Put LoRA on the blocks' layers, freeze everything else, and return the new parameters by block.

    A starts Kaiming-uniform, B at zero: the network's outputs do not change yet.
    """
    layers = [layer for block in blocks for layer in block.layers]
    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=layers, lora_dropout=0.0)  # type: ignore[arg-type]
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, adapter_name=ACTIVE)
    groups: dict[str, list[nn.Parameter]] = {}
    for block in blocks:
        for layer in block.layers:
            groups.setdefault(block.name, []).extend(_factors(model, layer))
    trainable = sum(p.requires_grad for p in model.parameters())
    assert trainable == sum(map(len, groups.values())), "PEFT adapted other layers than it was told"
    return groups


def extract(model: nn.Module, layers: Iterable[str], rank: int, scale: float, head: Weights) -> Adapter:
    """Take the trained factors out; layers whose change is exactly zero are left out."""
    factors = {}
    for layer in layers:
        a, b = (p.detach().float().cpu().clone() for p in _factors(model, layer))
        if a.any() and b.any():
            factors[layer] = (a, b)
    return Adapter(rank, scale, factors, {k: v.float().cpu().clone() for k, v in head.items()})


def _factors(model: nn.Module, layer: str) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B of an adapted layer."""
    module: Any = model.get_submodule(layer)
    return module.lora_A[ACTIVE].weight, module.lora_B[ACTIVE].weight


def delta(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The change of one layer's weight: ``scale * B @ A``, (out, in) or (out, in, k, k), in fp32."""
    flat = b.float().flatten(1) @ a.float().flatten(1)  # (out, in * k * k)
    return (scale * flat).reshape(b.shape[0], *a.shape[1:])


def fold(weights: Mapping[str, Tensor], adapter: Adapter) -> Weights:
    """New weights with the adapter added, in fp32; ``weights`` is not changed.

    A layer that is not there, or a grown classifier that does not begin with the rows below it, is a
    :class:`WrongBaseError`.
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
        if known is not None and not torch.equal(grown[: len(known)], known.float()):
            raise WrongBaseError(f"the adapter's classifier {name} was grown from another one")
        folded[name] = grown.clone()
    return folded


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
