"""M8: what the registry itself still holds from which the forgotten could be had back. No data, no attack."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from kswap_registry import Registry, RegistryError, Version
from kswap_registry.remains import copies_aside

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


def find_remains(registry: Registry, original: str, classes: Collection[str]) -> Remains:
    """What is stored of ``original``, which knew ``classes``, of all that it stands on, and of what else knows one."""
    knew = registry.resolve(original)
    stack = [registry.resolve(f"{knew.model}@base"), *registry.stack(knew)]
    holders = {v.number: v for v in (*stack, *knowing(registry, knew.model, classes))}
    twins = _twins(registry, holders.values())
    held = tuple(
        f"{version.ref}: {name}"
        for version in (*(version for _, version in sorted(holders.items())), *twins)
        for name, digest in version.files.items()
        if _stored(registry, digest)
    )
    shipped = tuple(dict.fromkeys(what for what, _ in shipped_anywhere(registry, (*holders.values(), *twins))))
    return Remains("SUPPRESSED" if held else "MERGED" if shipped else "PURGED", held, shipped)


def _twins(registry: Registry, holders: Collection[Version]) -> list[Version]:
    """The versions of other models that compute what one of ``holders`` does, with all that they stand on."""
    weights, names = {v.weights for v in holders}, {v.model for v in holders}
    found: dict[str, Version] = {}
    for model in registry.models():
        for version in registry.versions(model.name) if model.name not in names else ():
            if version.weights in weights:
                line = (registry.resolve(f"{model.name}@base"), *registry.stack(version))
                found |= {v.ref: v for v in line}
    return list(found.values())


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


def knowing(registry: Registry, name: str, classes: Collection[str]) -> list[Version]:
    """The versions of a model, on any branch, that know one of ``classes``."""
    model = registry.model(name)
    return [v for v in registry.versions(name) if not set(classes).isdisjoint(knowledge_of(model, v).known)]


def with_twins(registry: Registry, holders: Collection[Version]) -> list[Version]:
    """``holders``, and the versions of other models that compute the same as one of them."""
    weights = {version.weights for version in holders}
    return [*holders, *(version for version in _twins(registry, holders) if version.weights in weights)]


def shipped_anywhere(registry: Registry, versions: Iterable[Version]) -> list[tuple[str, str]]:
    """:func:`shipped_from`, of versions of several models."""
    numbers: dict[str, set[int]] = {}
    for version in versions:
        numbers.setdefault(version.model, set()).add(version.number)
    return [found for model, those in numbers.items() for found in shipped_from(registry, model, those)]


def shipped_from(registry: Registry, model: str, numbers: Collection[int]) -> list[tuple[str, str]]:
    """What the history tells was written of these versions of ``model``, and the file or the place.

    A bundle or push brings its whole stack, and the base with it where it says so.
    """
    found = []
    for event in registry.events(model):
        if event.action not in SHIPPED:
            continue
        stack = registry.stack(registry.resolve(f"{model}@{event.number or 'base'}"))
        brought = {v.number for v in stack} if event.action in {"bundle", "push"} else {event.number or 0}
        brought |= {0} if event.payload.get("base") else set()
        if brought & set(numbers):
            place = event.payload.get("file") or event.payload.get("to") or ""
            found.append((f"{event.action} of {model}@{event.number or 'base'}", place))
    return found


def _stored(registry: Registry, digest: str) -> bool:
    if copies_aside(registry, digest):
        return True
    try:
        return registry.blob(digest).is_file()
    except RegistryError:
        return False
