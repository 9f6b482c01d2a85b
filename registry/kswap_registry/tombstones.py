"""What was purged: the history names each digest that went, and is asked before a missing file counts as damage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .database import Database
from .errors import Damaged, MissingBlob, PurgedBlob, RegistryError
from .records import Version

if TYPE_CHECKING:
    from .store import Registry

TOLD = "purged"
"""Where a history entry's payload names what went: digest to size."""


@dataclass(frozen=True)
class Tombstone:
    """What is known of a file that was purged."""

    model: str
    """The model that was purged."""
    time: str
    """When, as the history has it."""
    replaced: tuple[str, ...]
    """The models that its heads were merged into."""


def tombstones(database: Database) -> dict[str, Tombstone]:
    """Each purged file's stone by its digest; one that was stored again since is no longer among them."""
    found: dict[str, Tombstone] = {}
    if database.value("SELECT 1 FROM history WHERE action = 'purge'") is None:
        return found
    for row in database.rows("SELECT seq, time, model, payload FROM history ORDER BY seq"):
        try:
            told = json.loads(row["payload"])
        except ValueError as error:
            raise Damaged(f"history entry {row['seq']} is damaged: {error}") from error
        if went := told.get(TOLD):
            heirs = tuple(dict.fromkeys(told.get("replaced", {}).values()))
            found |= dict.fromkeys(went, Tombstone(row["model"], row["time"], heirs))
        for digest in told.get("files", {}).values():
            found.pop(digest, None)
    return found


def why_missing(database: Database, error: MissingBlob, digest: str) -> RegistryError:
    """``error``, or that the file was purged."""
    stone = tombstones(database).get(digest)
    return error if stone is None else PurgedBlob(digest, stone.model, stone.time, stone.replaced)


def missing(registry: Registry, version: Version) -> dict[str, str]:
    """The names of a version's files that are not in the store, and why: missing or purged. No content is read."""
    gone = {name: digest for name, digest in version.files.items() if not registry.store.path(digest).exists()}
    purged = tombstones(registry.database) if gone else {}
    return {name: "purged" if digest in purged else "missing" for name, digest in gone.items()}


def require(registry: Registry, version: Version) -> None:
    """Raise MissingBlob, or PurgedBlob, unless a version's own files and its base's are there.

    What lies between is not looked at, so that this costs the same for any stack: a purge takes all of a model.
    """
    base = registry.resolve(f"{version.model}@base")
    for digest in {*base.files.values(), *version.files.values()}:
        registry.blob(digest)
