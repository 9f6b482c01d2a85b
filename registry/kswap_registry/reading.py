"""Rows into records: every question the registry answers, without a lock, from one snapshot each."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from . import refs
from .database import Database, Row
from .digests import record_digest
from .errors import BadValue, Damaged
from .records import Attempt, Model, Version, reference

RECORDED = ("kind", "method", "spec", "state", "adapter", "weights", "fingerprint", "note", "created")
"""The columns of a version that its digest vouches for, besides its place, files and metrics."""


def models(database: Database) -> list[Model]:
    """All models, by name."""
    with database.reading():
        rows = database.rows("SELECT * FROM models ORDER BY name")
        return [_model(database, row) for row in rows]


def model(database: Database, name: str) -> Model:
    """One model."""
    with database.reading():
        row = database.row("SELECT * FROM models WHERE id = ?", refs.model_row(database, name))
        assert row is not None, "its id was read in this snapshot"
        return _model(database, row)


def resolve(database: Database, name: str) -> Version:
    """The version a reference names."""
    with database.reading():
        row_id, number = refs.number(database, name)
        return version(database, row_id, number)


def version(database: Database, model_id: int, number: int) -> Version:
    """One version by its number."""
    found = _versions(database, f"{_VERSION} WHERE versions.model = ? AND number = ?", model_id, number)
    if not found:
        raise Damaged(f"the row of version {number} is gone")
    return found[0]


def versions(database: Database, name: str, limit: int | None) -> list[Version]:
    """The newest ``limit`` versions of a model (all without), lowest number first."""
    with database.reading():
        row_id = refs.model_row(database, name)
        newest = f"{_VERSION} WHERE versions.model = ? ORDER BY number DESC LIMIT ?"
        return _versions(database, newest, row_id, -1 if limit is None else limit)[::-1]


def stack(database: Database, top: Version) -> list[Version]:
    """The versions a stack is made of, from the first above the base up to ``top``."""
    with database.reading():
        return _versions(database, _STACK, top.number, refs.model_row(database, top.model))


def attempts(database: Database, name: str | None, limit: int | None) -> list[Attempt]:
    """The last ``limit`` operations (all without), of one model or of all, oldest first."""
    with database.reading():
        chosen = None if name is None else refs.model_row(database, name)
        rows = database.rows(_ATTEMPTS, chosen, -1 if limit is None else limit)
    return [_attempt(row) for row in reversed(rows)]


def tags(database: Database, name: str) -> dict[str, int]:
    """A model's tags and the numbers they stand at."""
    with database.reading():
        row_id = refs.model_row(database, name)
        rows = database.rows("SELECT name, number FROM tags WHERE model = ? ORDER BY name", row_id)
    return {row["name"]: row["number"] for row in rows}


def digest_of(database: Database, model_id: int, number: int) -> str:
    """The digest a version was recorded with."""
    return str(database.value("SELECT digest FROM versions WHERE model = ? AND number = ?", model_id, number))


def branches(database: Database, name: str) -> dict[str, int]:
    """A model's branches and the numbers they are at."""
    with database.reading():
        row_id = refs.model_row(database, name)
        rows = database.rows("SELECT name, head FROM branches WHERE model = ? ORDER BY name", row_id)
    return {row["name"]: row["head"] for row in rows}


def model_digest(fields: Mapping[str, Any]) -> str:
    """The digest of what a model was registered with; ``fields`` as in its row."""
    return record_digest({name: fields[name] for name in ("name", "task", "source", "spec", "classes", "created")})


def version_digest(name: str, fields: Mapping[str, Any], files: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """The digest of all that a version was recorded with; ``fields`` as in its row."""
    place = {"model": name, "number": fields["number"], "parent": fields["parent"]}
    columns = {column: fields[column] for column in RECORDED}
    return record_digest({**place, **columns, "files": dict(files), "metrics": dict(metrics)})


@contextmanager
def sound(what: str) -> Iterator[None]:
    """What rows make of the code that reads them, where they hold other things than were written, is damage."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise Damaged(f"{what} is damaged: {error}") from error


def _model(database: Database, row: Row) -> Model:
    with sound(f"the record of a model in {database.path}"):
        _vouch(row["name"], row["digest"], lambda: model_digest(dict(row)))
        base = version(database, row["id"], 0)
        return Model(
            name=row["name"],
            task=row["task"],
            source=row["source"],
            spec=json.loads(row["spec"]),
            classes=json.loads(row["classes"]),
            fingerprint=base.fingerprint,
            files=base.files,
            head=refs.head(database, row["id"]),
            created=row["created"],
        )


def _versions(database: Database, query: str, *values: Any) -> list[Version]:
    rows = database.rows(query, *values)
    chosen = json.dumps([row["id"] for row in rows])
    files, sizes = defaultdict[int, dict[str, str]](dict), defaultdict[int, int](int)
    for row in database.rows(_FILES, chosen):
        files[row["version"]][row["name"]] = row["digest"]
        sizes[row["version"]] += row["size"]
    metrics = _grouped(database.rows(_METRICS, chosen))
    labels = _grouped(database.rows(_TAGS, chosen))
    with sound(f"the record of a version in {database.path}"):
        return [
            _version(row, files[row["id"]], metrics[row["id"]], labels[row["id"]], sizes[row["id"]]) for row in rows
        ]


def _grouped(rows: Iterable[Row]) -> defaultdict[int, dict[str, Any]]:
    groups = defaultdict[int, dict[str, Any]](dict)
    for row in rows:
        groups[row["version"]][row["name"]] = row["value"]
    return groups


def _version(
    row: Row, files: dict[str, str], metrics: dict[str, float], labels: Mapping[str, Any], size: int
) -> Version:
    name = row["model_name"]
    _vouch(reference(name, row["number"]), row["digest"], lambda: version_digest(name, dict(row), files, metrics))
    return Version(
        model=name,
        number=row["number"],
        parent=row["parent"],
        kind=row["kind"],
        method=row["method"],
        spec=json.loads(row["spec"]),
        state=json.loads(row["state"]),
        adapter=row["adapter"],
        weights=row["weights"],
        fingerprint=row["fingerprint"],
        files=files,
        metrics=metrics,
        note=row["note"],
        created=row["created"],
        tags=list(labels),
        size=size,
    )


def _attempt(row: Row) -> Attempt:
    with sound(f"operation {row['id']}"):
        read = {"spec": json.loads(row["spec"]), "environment": json.loads(row["environment"])}
    return Attempt(**(dict(row) | read))


def _vouch(what: str, recorded: str, compute: Callable[[], str]) -> None:
    try:
        sound = compute() == recorded
    except BadValue:  # bytes where there was text
        sound = False
    if not sound:
        raise Damaged(f"the record of {what} was changed after it was written")


_VERSION = "SELECT versions.*, models.name AS model_name FROM versions JOIN models ON models.id = versions.model"

_STACK = f"""
WITH RECURSIVE line (number) AS (
    VALUES (?1)
    UNION ALL
    SELECT versions.parent FROM line
    JOIN versions ON versions.model = ?2 AND versions.number = line.number
    WHERE versions.parent IS NOT NULL
)
{_VERSION} WHERE versions.model = ?2 AND number > 0 AND number IN (SELECT number FROM line) ORDER BY number"""  # noqa: S608

_ATTEMPTS = """
SELECT operations.id, models.name AS model, branch, operations.parent, kind, method, operations.spec, command,
    environment, user, started, state, ended, error, version
FROM operations JOIN models ON models.id = operations.model
WHERE ?1 IS NULL OR models.id = ?1 ORDER BY operations.id DESC LIMIT ?2"""

_CHOSEN = "(SELECT value FROM json_each(?))"
_FILES = f"SELECT version, name, digest, size FROM files JOIN blobs USING (digest) WHERE version IN {_CHOSEN}"  # noqa: S608
_METRICS = f"SELECT version, name, value FROM metrics WHERE version IN {_CHOSEN}"  # noqa: S608
_TAGS = f"""SELECT versions.id AS version, name, tags.number AS value
FROM versions JOIN tags ON tags.model = versions.model AND tags.number = versions.number
WHERE versions.id IN {_CHOSEN} ORDER BY name"""  # noqa: S608
