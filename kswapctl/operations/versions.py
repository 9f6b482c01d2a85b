"""Bring a version to life: its specification, what it knows, and its weights, composed from the base."""

from __future__ import annotations

from dataclasses import dataclass

from kswap_registry import Model, Registry, Version
from torch import nn

from kswapctl.errors import IntegrityError, WrongBaseError
from kswapctl.models.building import build
from kswapctl.models.lora import CONFIG_FILE, WEIGHTS_FILE, Adapter, compose
from kswapctl.models.lora import load as load_adapter
from kswapctl.models.weights import Weights, fingerprint, read
from kswapctl.spec import Knowledge, ModelSpec

BASE_FILE = "model.safetensors"
"""Name of a model's one file in the registry."""


@dataclass(frozen=True)
class Composed:
    """A version with its weights."""

    version: Version
    spec: ModelSpec
    knowledge: Knowledge
    weights: Weights

    def network(self) -> nn.Module:
        """The network in eval mode, on the CPU."""
        return build(self.spec, self.weights)


def load_base(registry: Registry, model: Model) -> Weights:
    """The untouched tensors of a registered model, checked against their fingerprint."""
    weights, _ = read(registry.blob(model.files[BASE_FILE]))
    if fingerprint(weights) != model.fingerprint:
        raise IntegrityError(
            f"the stored tensors of {model.name} are not those that were registered", "kswapctl doctor"
        )
    return weights


def load_adapters(registry: Registry, version: Version) -> list[Adapter]:
    """The adapters of a version's stack, in order, each checked against its fingerprint."""
    adapters = []
    for entry in registry.stack(version):
        adapter = load_adapter({name: registry.blob(entry.files[name]) for name in (WEIGHTS_FILE, CONFIG_FILE)})
        if adapter.fingerprint != entry.adapter:
            raise IntegrityError(
                f"the stored adapter of {entry.ref} is not the one that was registered", "kswapctl doctor"
            )
        adapters.append(adapter)
    return adapters


def knowledge_of(model: Model, version: Version) -> Knowledge:
    """What a version knows; for the base, its own classes and the data named when it was added."""
    if version.number:
        return Knowledge.from_json(version.state)
    data = model.spec.get("data", "")
    return Knowledge(classes=tuple(model.classes), sources=(data,) if data else ())


def load_version(registry: Registry, version: Version) -> Composed:
    """Compose ``version``: base and adapters in order, in fp32. The result must hash to what was recorded."""
    model = registry.model(version.model)
    weights = compose(load_base(registry, model), load_adapters(registry, version))
    if version.number and fingerprint(weights) != version.weights:
        raise WrongBaseError(
            f"{version.ref} does not compose to the weights that were recorded",
            "a matrix library other than the one it was made with may round differently: kswapctl doctor --deep",
        )
    return Composed(version, ModelSpec.from_json(model.spec), knowledge_of(model, version), weights)
