"""Garbage collection: dangling blobs and left scratch files go, once they are old enough to be nobody's."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from . import clock, history, layout
from .errors import storage_errors
from .faults import point
from .remains import Remain, remains

if TYPE_CHECKING:
    from .store import Registry

GRACE = timedelta(days=14)
"""Longer than any operation lasts between storing a blob and recording it."""

_LEAP = timedelta(days=60)


@dataclass(frozen=True)
class Collection:
    """What a collection removed, or would remove."""

    garbage: list[Remain]
    removed: bool
    held_back: str = ""
    """Why nothing was removed although there was garbage."""

    @property
    def size(self) -> int:
        """Bytes of all garbage."""
        return sum(remain.size for remain in self.garbage)


def gc(registry: Registry, grace: timedelta = GRACE, dry_run: bool = True, command: str = "gc") -> Collection:
    """Remove what nothing refers to and nobody touched for ``grace``; a dry run only tells.

    After a long silence the clock may have leapt, which makes everything look old: then this run only notes
    the time, and the next one removes.
    """
    if dry_run:
        return Collection(_old(registry, grace), removed=False)
    with registry.exclusive(command), storage_errors(registry.folder):
        garbage = _old(registry, grace)
        if not garbage:
            return Collection([], removed=False)
        if clock.seconds_since(_last_seen(registry)) > _LEAP.total_seconds():
            _tell(registry, [], command)
            return Collection(garbage, removed=False, held_back="the clock may have leapt: run it again")
        _remove_all(registry, garbage, command)
    return Collection(garbage, removed=True)


def _old(registry: Registry, grace: timedelta) -> list[Remain]:
    return [remain for remain in remains(registry) if remain.age >= grace.total_seconds()]


def _last_seen(registry: Registry) -> str:
    return str(registry.database.value("SELECT time FROM history ORDER BY seq DESC LIMIT 1"))


def _remove_all(registry: Registry, garbage: list[Remain], command: str) -> None:
    scratch = registry.folder / layout.TEMPORARY
    # scratch first and unrecorded: on a full disk this makes the room that the history row needs
    for remain in garbage:
        if remain.path.parent == scratch:
            remove(remain.path)
            point("gc.after_scratch")
    blobs = [remain for remain in garbage if remain.path.parent != scratch]
    _tell(registry, blobs, command)
    with registry.database.writing():  # nobody can record one of these blobs while it goes
        recorded = {row["digest"] for row in registry.database.rows("SELECT digest FROM blobs")}
        for remain in blobs:
            if remain.path.name not in recorded:
                remove(remain.path)
                point("gc.after_one")


def _tell(registry: Registry, blobs: list[Remain], command: str) -> None:
    names = [str(remain.path.relative_to(registry.folder)) for remain in blobs]
    payload = {"removed": names, "bytes": sum(remain.size for remain in blobs)}
    with registry.database.writing():
        history.append(registry.database, action="gc", command=command, payload=payload)
    point("gc.after_history")


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
