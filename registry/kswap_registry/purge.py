"""Purging: a model's files go for good. Its rows and its history stay, and say what went, when and for what.

A purge is one history entry that names the digests, its tombstones; then the files are removed. So the chain holds, a
purge that was cut short is finished by repeating it, and what was purged is never taken for damage.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import history, reading, refs
from .blobs import Blob
from .cleanup import remove
from .durable import sync_folder
from .errors import NotConfirmed, RegistryError, StillNeeded, storage_errors
from .faults import point
from .records import Version, reference
from .remains import Remain, copies_aside, remains, unknown_aside
from .tombstones import TOLD, tombstones

if TYPE_CHECKING:
    from .store import Registry


@dataclass(frozen=True)
class Purge:
    """What a purge of a model removes, or would remove."""

    model: str
    blobs: list[Blob]
    """The files of all its versions that are still here."""
    copies: dict[Path, Blob]
    """Copies of such files in quarantine, also of those that are nowhere else."""
    remains: list[Remain]
    """Files that belong to nothing: what they hold is not known, so they go as well."""
    replaced: dict[str, str]
    """Branch to the model that its head was merged into."""
    kept: dict[str, str]
    """Digest of a file that stays to the version of another model that needs it."""
    removed: bool = False

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(blob.size for blob in self.blobs)


def plan(registry: Registry, name: str) -> Purge:
    """What would go; StillNeeded where a head has no replacement."""
    with registry.database.reading():
        row = refs.model_row(registry.database, name)
        replaced = {branch: _replacement(registry, name, number) for branch, number in registry.branches(name).items()}
        needed = _needed(registry, but=name)
        rows = registry.database.rows(_BLOBS, row)
    every = [Blob(found["digest"], found["size"]) for found in rows if found["digest"] not in needed]
    kept = {found["digest"]: needed[found["digest"]] for found in rows if found["digest"] in needed}
    here = [blob for blob in every if _is_here(registry, blob.digest)]
    copies = {path: blob for blob in every for path in copies_aside(registry, blob.digest)}
    return Purge(name, here, copies, [*remains(registry), *unknown_aside(registry)], replaced, kept)


def purge(registry: Registry, name: str, *, confirm: str, command: str = "purge") -> Purge:
    """Remove them; ``confirm`` repeats the model's name. Nothing brings them back but a copy from elsewhere."""
    if confirm != name:
        raise NotConfirmed(name, confirm)
    with registry.exclusive(command), storage_errors(registry.folder):
        found = plan(registry, name)
        gone = tombstones(registry.database)
        untold = [b for b in dict.fromkeys((*found.blobs, *found.copies.values())) if b.digest not in gone]
        if untold:
            _tell(registry, found, untold, command)
        for path in [*(registry.store.path(blob.digest) for blob in found.blobs), *found.copies]:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
            point("purge.after_one")
        for remain in found.remains:
            remove(remain.path)
            point("purge.after_remain")
    return replace(found, removed=True)


def _tell(registry: Registry, found: Purge, untold: list[Blob], command: str) -> None:
    payload = {TOLD: {blob.digest: blob.size for blob in untold}, "replaced": found.replaced}
    with registry.database.writing():
        history.append(registry.database, action="purge", model=found.model, command=command, payload=payload)
    point("purge.after_history")


def _replacement(registry: Registry, name: str, number: int) -> str:
    """The model whose base is this version, merged."""
    head = reading.resolve(registry.database, f"{name}@{number or 'base'}")
    rows = registry.database.rows(_MERGED, head.weights, name)
    for found in rows:
        base = reading.resolve(registry.database, f"{found['name']}@base")
        if _whole(registry, base):
            return str(found["name"])
    ref = reference(name, number)
    raise StillNeeded(
        f"{ref} needs the files, and no other model here is what it merges to",
        f"kswapctl merge {ref} -o FILE.safetensors, then kswapctl add NAME FILE.safetensors; or move the branch",
    )


def _whole(registry: Registry, version: Version) -> bool:
    try:
        for digest in version.files.values():
            registry.blob(digest, verify=True)
    except RegistryError:
        return False
    return True


def _needed(registry: Registry, but: str) -> dict[str, str]:
    """Digest to a version that needs it: of every other model, what its heads are composed of, if it was not purged."""
    needed: dict[str, str] = {}
    purged = tombstones(registry.database)
    for model in registry.models():
        for number in set(registry.branches(model.name).values()) if model.name != but else ():
            head = registry.resolve(f"{model.name}@{number or 'base'}")
            digests = {d for v in registry.stack(head) for d in v.files.values()} | set(model.files.values())
            if purged.keys().isdisjoint(digests):  # one that only lacks a file may get it back
                needed |= dict.fromkeys(digests, head.ref)
    return needed


def _is_here(registry: Registry, digest: str) -> bool:
    return os.path.lexists(registry.store.path(digest))


_BLOBS = """SELECT DISTINCT blobs.digest, blobs.size FROM blobs JOIN files USING (digest)
JOIN versions ON versions.id = files.version WHERE versions.model = ? ORDER BY blobs.digest"""

_MERGED = """SELECT models.name FROM versions JOIN models ON models.id = versions.model
WHERE number = 0 AND weights = ? AND models.name <> ? ORDER BY models.name"""
