"""Checks the invariants of a registry, and moves what breaks them into quarantine. It never deletes.

I1 every referred blob is there and whole; I2 heads, parents and fingerprints fit; I3 nothing lies around;
I4 no operation is half done, and the tables are what the history tells; I5 the history is one sound chain;
I7 the database itself is sound. (I6, the composed weights of a head, needs the network: the caller's job.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import clock, filesystem, history, identity, layout, reading
from .blobs import Blob
from .digests import stack_fingerprint
from .durable import sync_folder, temporary_name
from .errors import MissingBlob, RegistryError, storage_errors
from .faults import point
from .records import Version, reference
from .remains import remains
from .tombstones import tombstones

if TYPE_CHECKING:
    from .store import Registry


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    invariant: str
    subject: str
    message: str
    serious: bool = True
    """False for what harms nothing: remains, an operation whose process died."""
    path: Path | None = None
    """The file to put into quarantine, if there is one."""


@dataclass(frozen=True)
class Moved:
    """A file that went into quarantine."""

    source: Path
    target: Path


def check(registry: Registry, deep: bool = False) -> list[Finding]:
    """Everything that is wrong, the database first; ``deep`` hashes every blob again."""
    checks: dict[str, Callable[[Registry], Iterator[Finding]]] = {
        "I7": _database,
        "I5": _history,
        "I2": _records,
        "I4": _tables,
        "I1": partial(_blobs, deep=deep),
        "I3": _remains,
        "disk": _surroundings,
    }
    return [finding for invariant, look in checks.items() for finding in _guarded(registry, invariant, look)]


def fix(registry: Registry, deep: bool = False, command: str = "doctor --fix") -> list[Moved]:
    """Move damaged blobs and remains into quarantine, and note dead operations; the rest needs a backup."""
    with registry.exclusive(command), storage_errors(registry.folder):
        found = [finding.path for finding in check(registry, deep) if finding.path is not None]
        if not found:
            return []
        folder = registry.folder / layout.QUARANTINE / f"{clock.now():%Y%m%dT%H%M%S}-{temporary_name()[:8]}"
        moves = [Moved(path, folder / f"{number}-{path.name}") for number, path in enumerate(found)]
        _tell(registry, moves, command)
        folder.mkdir(parents=True)
        for move in moves:
            os.rename(move.source, move.target)
            sync_folder(folder)
            point("fix.after_one")
    return moves


def _tell(registry: Registry, moves: list[Moved], command: str) -> None:
    folder = registry.folder
    names = {str(move.source.relative_to(folder)): str(move.target.relative_to(folder)) for move in moves}
    with registry.database.writing():
        history.append(registry.database, action="quarantine", command=command, payload={"moved": names})
    point("fix.after_history")


def _guarded(registry: Registry, invariant: str, look: Callable[[Registry], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        with reading.sound("a row"):
            yield from look(registry)
    except RegistryError as error:  # the check itself ran into the damage
        yield Finding(invariant, layout.DATABASE, error.message)


def _database(registry: Registry) -> Iterator[Finding]:
    for row in registry.database.rows("PRAGMA integrity_check"):
        if row[0] != "ok":
            yield Finding("I7", layout.DATABASE, row[0])
    for row in registry.database.rows("PRAGMA foreign_key_check"):
        yield Finding("I7", layout.DATABASE, f"a row of {row['table']} refers to a missing row of {row['parent']}")


def _history(registry: Registry) -> Iterator[Finding]:
    verification = history.verify(registry.database)
    if verification.first_bad is not None:
        yield Finding("I5", f"history entry {verification.first_bad}", verification.reason)


def _records(registry: Registry) -> Iterator[Finding]:
    database = registry.database
    for row in database.rows("SELECT id, name FROM models ORDER BY name"):
        fingerprints: dict[int, str] = {}
        for version in _readable(registry, row["id"], row["name"]):
            if isinstance(version, Finding):
                yield version
                continue
            fingerprints[version.number] = version.fingerprint
            below = fingerprints.get(version.parent) if version.parent is not None else None
            if below is not None and stack_fingerprint(below, version.adapter) != version.fingerprint:
                yield Finding("I2", version.ref, "its fingerprint is not that of its parent and its adapter")
        yield from _model_record(registry, row["name"])


def _readable(registry: Registry, model_id: int, name: str) -> Iterator[Version | Finding]:
    try:
        yield from reading.versions(registry.database, name, None)
    except RegistryError:
        for number in range(1 + _last(registry, model_id)):  # one by one, to name each that is damaged
            try:
                yield reading.version(registry.database, model_id, number)
            except RegistryError as error:
                yield Finding("I2", reference(name, number), error.message)


def _model_record(registry: Registry, name: str) -> Iterator[Finding]:
    try:
        registry.model(name)
    except RegistryError as error:
        yield Finding("I2", name, error.message)


def _last(registry: Registry, model_id: int) -> int:
    return int(registry.database.value("SELECT max(number) FROM versions WHERE model = ?", model_id))


def _tables(registry: Registry) -> Iterator[Finding]:
    with registry.database.reading():
        told = history.replay(registry.database)
        found = history.Told.of_tables(registry.database)
    for name in sorted(told.facts.keys() | found.facts.keys()):
        said, stands = told.facts.get(name), found.facts.get(name)
        if said != stands:
            yield Finding("I4", name, f"the history says {said or 'nothing'}, the tables say {stands or 'nothing'}")
    for row in registry.database.rows("SELECT * FROM operations WHERE state = 'running'"):
        if not identity.lives(row["owner"]):
            message = "its process died; the next command that writes will note that"
            yield Finding("I4", f"operation {row['id']}", message, serious=False)


def _blobs(registry: Registry, deep: bool) -> Iterator[Finding]:
    gone = tombstones(registry.database)
    for row in registry.database.rows(_OWNED):
        if row["digest"] in gone:
            if os.path.lexists(registry.store.path(row["digest"])):
                yield Finding("I1", row["owner"], "was purged and is still here: purge again", serious=False)
            continue
        try:
            registry.store.check(Blob(row["digest"], row["size"]), deep=deep)
        except MissingBlob as error:
            yield Finding("I1", row["owner"], error.message)
        except RegistryError as error:
            yield Finding("I1", row["owner"], error.message, path=registry.store.path(row["digest"]))


def _remains(registry: Registry) -> Iterator[Finding]:
    for remain in remains(registry):
        name = str(remain.path.relative_to(registry.folder))
        yield Finding("I3", name, remain.what, serious=False, path=remain.path)


def _surroundings(registry: Registry) -> Iterator[Finding]:
    key = registry.folder / layout.KEY
    if not key.is_file():
        yield Finding("disk", layout.KEY, "the key is gone: commitments cannot be checked any more")
    elif key.stat().st_mode & 0o077:
        yield Finding("disk", layout.KEY, "others can read the key: chmod 600", serious=False)
    kind = filesystem.network_kind(registry.folder)
    if kind:
        message = f"lies on a network disk ({kind}), where locks may not lock: write from one machine only"
        yield Finding("disk", str(registry.folder), message, serious=False)


_OWNED = """
SELECT blobs.digest, blobs.size,
    coalesce((SELECT models.name || '@' || iif(number = 0, 'base', number) || ' ' || files.name
              FROM files JOIN versions ON versions.id = files.version
              JOIN models ON models.id = versions.model
              WHERE files.digest = blobs.digest ORDER BY versions.id LIMIT 1), blobs.digest) AS owner
FROM blobs ORDER BY blobs.digest"""
