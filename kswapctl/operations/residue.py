"""M8: what the registry itself still holds from which the forgotten could be had back. No data, no attack."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from kswap_registry import Registry, RegistryError, Version

from kswapctl.operations.versions import knowledge_of

Residue = Literal["SUPPRESSED", "MERGED", "PURGED"]

SHIPPED = ("merge", "export", "bundle", "push")
"""Actions that write a copy to where the registry does not reach."""


@dataclass(frozen=True)
class Remains:
    """What is left, and what that makes of the forgetting."""

    level: Residue
    """SUPPRESSED: the registry holds it. MERGED: only shipped copies could bring it back. PURGED: neither is known."""
    held: tuple[str, ...]
    """Stored files of versions that know the classes."""
    shipped: tuple[str, ...]
    """Files written from versions that know the classes; whoever has them has the classes."""


def find_remains(registry: Registry, original: str) -> Remains:
    """What is stored of ``original`` (the version that knew the classes) and of all that it stands on."""
    knew = registry.resolve(original)
    holders = [registry.resolve(f"{knew.model}@base"), *registry.stack(knew)]
    held = tuple(f"{v.ref}: {name}" for v in holders for name, digest in v.files.items() if _stored(registry, digest))
    shipped = shipped_from(registry, knew.model, {v.number for v in holders})
    return Remains("SUPPRESSED" if held else "MERGED" if shipped else "PURGED", held, shipped)


def knew_before_merging(registry: Registry, version: Version, classes: Collection[str]) -> str:
    """The version that knew ``classes``, where ``version`` is a base that a later one was merged to; else empty."""
    if version.number:
        return ""
    for model in registry.models():
        for other in registry.versions(model.name) if model.name != version.model else ():
            gone = knowledge_of(model, other).forgotten
            if other.weights == version.weights and gone.keys() >= set(classes):
                below = min(gone[name] for name in classes) - 1
                return registry.stack(other)[below - 1].ref if below else f"{model.name}@base"
    return ""


def shipped_from(registry: Registry, model: str, numbers: Collection[int]) -> tuple[str, ...]:
    """What the history tells was written of these versions of ``model``; a bundle or push brings its whole stack."""
    found = []
    for event in registry.events(model):
        if event.action not in SHIPPED:
            continue
        stack = registry.stack(registry.resolve(f"{model}@{event.number or 'base'}"))
        brought = {v.number for v in stack} if event.action in {"bundle", "push"} else {event.number or 0}
        if brought & set(numbers):
            found.append(f"{event.action} of {model}@{event.number or 'base'}")
    return tuple(found)


def _stored(registry: Registry, digest: str) -> bool:
    try:
        return registry.blob(digest).is_file()
    except RegistryError:
        return False
