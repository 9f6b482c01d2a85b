"""Backup and restore: a whole, consistent copy of a registry, made while it is in use."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import creation, doctor, layout, schema
from .blobs import Blob, BlobStore
from .database import Database
from .durable import open_regular, sync_folder, temporary_name, write_new
from .errors import AlreadyExists, CorruptBlob, Damaged, NoRegistry, storage_errors
from .faults import point
from .store import Registry
from .tombstones import tombstones


def backup(registry: Registry, target: Path) -> None:
    """Copy the registry, as it is at this moment, into the new folder ``target``; every blob is checked."""
    _copy(registry.folder, target)


def restore(source: Path, folder: Path) -> Registry:
    """Make ``folder`` a registry from the backup in ``source``, once all of the copy proved sound."""
    with storage_errors(source):
        if not (source / layout.DATABASE).exists():
            raise NoRegistry(source)
        schema.check_header(source)
    _copy(source, folder)
    return Registry.open(folder)


def _copy(source: Path, target: Path) -> None:
    with storage_errors(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise AlreadyExists(f"{target} is there already", "name a new or empty folder")
        # built beside the target and renamed at the end: a copy that has its name is whole
        staging = target.absolute().parent / f".{target.name}.{temporary_name()}"
        staging.mkdir(parents=True)
        try:
            _fill(source, staging)
            _prove(staging)
            point("copy.before_publish")
            staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync_folder(target.absolute().parent)
        point("copy.after_publish")


def _fill(source: Path, staging: Path) -> None:
    creation.make_folders(staging)
    _copy_key(source, staging)
    database = Database(source / layout.DATABASE, read_only=True)
    try:
        database.copy_to(staging / layout.DATABASE)
    finally:
        database.close()
    point("copy.after_database")
    _copy_blobs(BlobStore(source), staging)
    point("copy.after_blobs")


def _copy_key(source: Path, staging: Path) -> None:
    try:
        with open_regular(source / layout.KEY, follow=False) as key:
            write_new(staging / layout.KEY, key.read(), 0o600)
    except FileNotFoundError:
        raise Damaged(f"the registry's key {source / layout.KEY} is gone") from None


def _copy_blobs(store: BlobStore, staging: Path) -> None:
    # as the copied rows tell: blobs that are added meanwhile belong to a later state
    database = Database(staging / layout.DATABASE, read_only=True)
    try:
        rows = database.rows("SELECT digest, size FROM blobs ORDER BY digest")
        gone = tombstones(database)
    finally:
        database.close()
    for row in (row for row in rows if row["digest"] not in gone):
        path = store.check(Blob(row["digest"], row["size"]), deep=False)
        copied = BlobStore(staging).add(path)
        if copied.digest != row["digest"]:
            raise CorruptBlob(row["digest"], "its content does not have the hash it is named by")


def _prove(staging: Path) -> None:
    with Registry.open(staging) as copy:
        for finding in doctor.check(copy):
            if finding.serious:
                raise Damaged(f"the copy is not sound: {finding.subject}: {finding.message}")
