"""The changes to a registry's rows, each one a function to be called inside a transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import clock, reading, refs
from .blobs import Blob, BlobStore
from .database import Database
from .digests import canonical, finite, stack_fingerprint, text
from .errors import AlreadyExists, HeadMoved
from .reading import RECORDED, model_digest, version_digest
from .records import reference


@dataclass(frozen=True)
class Checkpoint:
    """What a model is registered with."""

    name: str
    task: str
    source: str
    spec: Mapping[str, Any]
    classes: list[str]
    fingerprint: str


@dataclass(frozen=True)
class Change:
    """What a version is recorded with, besides its place and its files."""

    kind: str
    method: str
    spec: Mapping[str, Any]
    state: Mapping[str, Any]
    adapter: str
    weights: str
    metrics: Mapping[str, float]
    note: str = ""


def insert_model(database: Database, checkpoint: Checkpoint, blobs: Mapping[str, Blob]) -> None:
    """Write a model and its base version."""
    refuse_known(database, checkpoint.name)
    fields = {
        "name": checkpoint.name,
        "task": text(checkpoint.task, "task"),
        "source": text(checkpoint.source, "source"),
        "spec": canonical(dict(checkpoint.spec), "spec"),
        "classes": canonical(list(checkpoint.classes), "list of classes"),
        "created": clock.stamp(),
    }
    row_id = insert(database, "models", {**fields, "digest": model_digest(fields)})
    base = Change("base", "", {}, {}, adapter="", weights=checkpoint.fingerprint, metrics={})
    fields = {**_columns(base), "fingerprint": text(checkpoint.fingerprint, "fingerprint")}
    _insert_version(database, row_id, {"number": 0, "parent": None, **fields}, {}, blobs)
    insert_branch(database, row_id, refs.MAIN, 0)


def refuse_known(database: Database, name: str) -> None:
    """A model's name is taken once."""
    if database.value("SELECT 1 FROM models WHERE name = ?", name):
        raise AlreadyExists(f"there is a model {name!r} already", "choose another name")


def told(database: Database, name: str) -> dict[str, Any]:
    """What the history says of a model when it is registered."""
    added = reading.model(database, name)
    model = refs.model_row(database, name)
    return {
        "source": added.source,
        "task": added.task,
        "fingerprint": added.fingerprint,
        "files": added.files,
        "registered": database.value("SELECT digest FROM models WHERE id = ?", model),
        "record": reading.digest_of(database, model, 0),
    }


def insert_version(database: Database, model: int, parent: int, change: Change, blobs: Mapping[str, Blob]) -> int:
    """Write a new version above ``parent``; returns its number."""
    number = 1 + database.value("SELECT max(number) FROM versions WHERE model = ?", model)
    below = database.value("SELECT fingerprint FROM versions WHERE model = ? AND number = ?", model, parent)
    fields = {**_columns(change), "fingerprint": stack_fingerprint(below, change.adapter)}
    _insert_version(database, model, {"number": number, "parent": parent, **fields}, finite(change.metrics), blobs)
    return int(number)


def check_blobs(store: BlobStore, blobs: Mapping[str, Blob]) -> None:
    """Make sure, inside the transaction, that no clean-up took a blob between storing and recording it."""
    for blob in blobs.values():
        store.check(blob, deep=False)


def insert_branch(database: Database, model: int, name: str, number: int) -> None:
    """Write a new branch; a tag or branch of that name is in the way, as a reference could mean either."""
    if refs.tagged(database, model, name) is not None:
        raise AlreadyExists(f"there is a tag {name!r} already", "choose another name")
    if refs.branch_head(database, model, name) is not None:
        raise AlreadyExists(f"there is a branch {name!r} already", "choose another name")
    insert(database, "branches", {"model": model, "name": name, "head": number})


def set_tag(database: Database, model: int, name: str, number: int) -> None:
    """Put a tag at a version, wherever it stood before."""
    if refs.branch_head(database, model, name) is not None:
        raise AlreadyExists(f"there is a branch {name!r} already", "choose another name")
    database.execute(
        "INSERT INTO tags (model, name, number) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET number = excluded.number",
        model,
        name,
        number,
    )


@dataclass(frozen=True)
class Move:
    """A head on its way: which branch of which model (its row id), from where it must be, to where."""

    model: int
    branch: str
    expected: int
    number: int


def move_head(database: Database, move: Move) -> None:
    """Compare and swap: the head moves only if it still is where it is expected."""
    moved = database.execute(
        "UPDATE branches SET head = ? WHERE model = ? AND name = ? AND head = ?",
        move.number,
        move.model,
        move.branch,
        move.expected,
    )
    if moved.rowcount == 0:
        name = database.value("SELECT name FROM models WHERE id = ?", move.model)
        found = refs.head(database, move.model, move.branch)
        branch = name if move.branch == refs.MAIN else f"{name}@{move.branch}"
        raise HeadMoved(branch, reference(name, move.expected), reference(name, found))


def _insert_version(
    database: Database,
    model: int,
    fields: Mapping[str, Any],
    metrics: Mapping[str, float],
    blobs: Mapping[str, Blob],
) -> None:
    files = {text(name, "name of a file"): blob.digest for name, blob in blobs.items()}
    name = database.value("SELECT name FROM models WHERE id = ?", model)
    digest = version_digest(name, fields, files, metrics)
    row_id = insert(database, "versions", {"model": model, **fields, "digest": digest})
    for blob in blobs.values():
        database.execute(
            "INSERT INTO blobs (digest, size) VALUES (?, ?) ON CONFLICT DO NOTHING", blob.digest, blob.size
        )
    for file, file_digest in files.items():
        insert(database, "files", {"version": row_id, "name": file, "digest": file_digest})
    for metric, value in metrics.items():
        insert(database, "metrics", {"version": row_id, "name": metric, "value": value})


def _columns(change: Change) -> dict[str, Any]:
    columns = {
        "kind": text(change.kind, "kind"),
        "method": text(change.method, "method"),
        "spec": canonical(dict(change.spec), "spec"),
        "state": canonical(dict(change.state), "state"),
        "adapter": text(change.adapter, "fingerprint of the adapter"),
        "weights": text(change.weights, "fingerprint of the weights"),
        "note": text(change.note, "note"),
        "created": clock.stamp(),
    }
    assert columns.keys() == set(RECORDED) - {"fingerprint"}
    return columns


def insert(database: Database, table: str, fields: Mapping[str, Any]) -> int:
    """Write one row; returns its row id."""
    places = ", ".join("?" * len(fields))
    cursor = database.execute(
        f"INSERT INTO {table} ({', '.join(fields)}) VALUES ({places})",  # noqa: S608  names from this package
        *fields.values(),
    )
    return int(cursor.lastrowid or 0)
