"""Making a registry: every part appears whole, and the database last, so two at once both succeed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from . import identity, layout
from .durable import publish_once, sync_folder, temporary_name, write_new
from .errors import Damaged, storage_errors
from .faults import point


def create(folder: Path) -> None:
    """Make ``folder`` a registry; nothing happens to one that is there."""
    with storage_errors(folder):
        if (folder / layout.DATABASE).exists():
            return
        _refuse_remains(folder)
        folder.mkdir(parents=True, exist_ok=True)
        make_folders(folder)
        point("create.after_folders")
        _make_key(folder)
        point("create.after_key")
        _make_database(folder)
        point("create.after_publish")


def make_folders(folder: Path) -> None:
    """Make the folders inside a registry where they are missing: copying tools drop empty ones."""
    for part in (folder / layout.BLOBS, folder / layout.TEMPORARY):
        part.mkdir(exist_ok=True)  # never the registry's own folder: one that was removed stays so


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder on the disk of the registry in ``folder``, for files on their way in; it goes afterwards.

    Its name begins with the process, so that nobody takes it for a remain meanwhile.
    """
    with storage_errors(folder):
        make_folders(folder)
        temporary = TemporaryDirectory(dir=folder / layout.TEMPORARY, prefix=f"{identity.process()}-")
    with temporary as place:
        yield Path(place)


def _refuse_remains(folder: Path) -> None:
    # an empty registry over the blobs of a lost one would call all of them garbage
    blobs = folder / layout.BLOBS
    if blobs.is_dir() and any(blobs.iterdir()):
        raise Damaged(f"{folder} holds a registry's blobs, but its {layout.DATABASE} is gone")


def _make_key(folder: Path) -> None:
    if not (folder / layout.KEY).exists():
        temporary = folder / layout.TEMPORARY / temporary_name()
        write_new(temporary, os.urandom(32).hex().encode(), 0o600)
        publish_once(temporary, folder / layout.KEY)


def _make_database(folder: Path) -> None:
    from . import migration  # only here: it imports sqlite-utils

    temporary = folder / layout.TEMPORARY / f"{temporary_name()}.db"
    migration.build(temporary)
    sync_folder(folder / layout.TEMPORARY)
    point("create.before_publish")
    publish_once(temporary, folder / layout.DATABASE)
