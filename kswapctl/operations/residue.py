"""M8: what the registry itself still holds from which the forgotten could be had back. No data, no attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kswap_registry import Registry, RegistryError, Version

Residue = Literal["SUPPRESSED", "MERGED", "PURGED"]

SHIPPED = ("merge", "export")


@dataclass(frozen=True)
class Remains:
    """What is left, and what that makes of the forgetting."""

    level: Residue
    """SUPPRESSED: a rollback brings it back. MERGED: only shipped copies could. PURGED: neither is known of."""
    held: tuple[str, ...]
    """Stored files of versions that know the classes."""
    shipped: tuple[str, ...]
    """Files written from versions that know the classes; whoever has them has the classes."""


def find_remains(registry: Registry, version: Version, original: str) -> Remains:
    """What is stored of ``original`` (the version that knew the classes) and of all that it stands on."""
    knew = registry.resolve(original)
    holders = [registry.resolve(f"{version.model}@base"), *registry.stack(knew)]
    held = tuple(f"{v.ref}: {name}" for v in holders for name, digest in v.files.items() if _stored(registry, digest))
    numbers = {v.number for v in holders}
    shipped = tuple(
        f"{event.action} of {version.model}@{event.number or 'base'}"
        for event in registry.events(version.model)
        if event.action in SHIPPED and event.number in numbers
    )
    complete = all(_stored(registry, digest) for v in holders for digest in v.files.values())
    return Remains("SUPPRESSED" if complete else "MERGED" if shipped else "PURGED", held, shipped)


def _stored(registry: Registry, digest: str) -> bool:
    try:
        return registry.blob(digest).is_file()
    except RegistryError:
        return False
