"""What lies in a registry's folder and belongs to nothing: dangling blobs and left scratch files.

Such files are reported and cleaned up, never adopted: only a row makes a file part of the registry.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import identity, layout
from .errors import storage_errors

if TYPE_CHECKING:
    from .store import Registry


@dataclass(frozen=True)
class Remain:
    """A file or folder that nothing refers to."""

    path: Path
    what: str
    size: int
    """Bytes, of everything in it."""
    age: float
    """Seconds since it was last written; negative when the clock went back since."""


def remains(registry: Registry) -> list[Remain]:
    """Everything in blobs/ and tmp/ that no row refers to and no running operation uses."""
    with storage_errors(registry.folder):
        return [*_dangling(registry), *_scratch(registry)]


def copies_aside(registry: Registry, digest: str) -> list[Path]:
    """Where in quarantine a blob's file or a copy of it lies."""
    return sorted((registry.folder / layout.QUARANTINE).glob(f"*/*-{digest}"))


def unknown_aside(registry: Registry) -> list[Remain]:
    """What is in quarantine and was nothing that a row refers to."""
    referred = {row["digest"] for row in registry.database.rows("SELECT digest FROM blobs")}
    paths = sorted((registry.folder / layout.QUARANTINE).glob("*/*"))
    unknown = [path for path in paths if path.name.rpartition("-")[2] not in referred]
    return [remain for path in unknown for remain in _look(path, "put aside, and nobody knows what it is")]


def _dangling(registry: Registry) -> Iterator[Remain]:
    # The files first: a blob that is stored and recorded meanwhile then counts as referred to.
    present = list(registry.store.present())
    referred = {row["digest"] for row in registry.database.rows("SELECT digest FROM blobs")}
    for path in present:
        if path.name not in referred or path != registry.store.path(path.name):
            yield from _look(path, "a blob that no version refers to")


def _scratch(registry: Registry) -> Iterator[Remain]:
    folder = registry.folder / layout.TEMPORARY
    present = sorted(folder.iterdir()) if folder.is_dir() else []  # copying tools drop empty folders
    running = registry.database.rows("SELECT folder, owner FROM operations WHERE state = 'running'")
    used = {row["folder"] for row in running if identity.lives(row["owner"])}
    for path in present:
        if path.name not in used and not _is_at_work(path.name):
            yield from _look(path, "left by something that did not end")


def _is_at_work(name: str) -> bool:
    """Whether a scratch folder's name begins with a process (:func:`identity.process`) that still runs."""
    owner = name.rpartition("-")[0]
    return owner.count(":") == 2 and owner.split(":")[1].isdecimal() and identity.lives(owner)


def _look(path: Path, what: str) -> Iterator[Remain]:
    try:
        size, written = _measure(path)
    except FileNotFoundError:  # somebody tidied up at the same time
        return
    yield Remain(path, what, size, time.time() - written)


def _measure(path: Path) -> tuple[int, float]:
    status = path.lstat()
    size, written = status.st_size, status.st_mtime
    if stat.S_ISDIR(status.st_mode):
        for name in os.listdir(path):
            inner, later = _measure(path / name)
            size, written = size + inner, max(written, later)
    return size, written
