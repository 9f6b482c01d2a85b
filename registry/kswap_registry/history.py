"""The history: entries that are only ever added, each holding the hash of the one before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import clock, identity
from .database import Database, Row
from .digests import ORIGIN, canonical, event_digest, text
from .errors import Damaged
from .records import Event, reference
from .refs import MAIN

if TYPE_CHECKING:
    from .store import Registry


@dataclass(frozen=True)
class Verification:
    """What checking the whole chain showed."""

    entries: int
    head: str
    """Digest of the last sound entry: print it, keep it elsewhere, compare it later."""
    first_bad: int | None = None
    """The seq where the chain breaks."""
    reason: str = ""


def append(
    database: Database,
    *,
    action: str,
    model: str | None = None,
    number: int | None = None,
    previous: int | None = None,
    command: str = "",
    payload: Mapping[str, Any] | None = None,
) -> Event:
    """Add one entry; the caller's transaction makes it one with what it tells of."""
    last = database.row("SELECT seq, digest FROM history ORDER BY seq DESC LIMIT 1")
    seq, parent_digest = (last["seq"] + 1, last["digest"]) if last else (1, ORIGIN)
    fields = {
        "seq": seq,
        "time": clock.stamp(),
        "model": model,
        "action": text(action, "action"),
        "number": number,
        "previous": previous,
        "command": text(command, "command"),
        "user": text(identity.user(), "user"),
        "payload": canonical(payload or {}, "payload"),
    }
    digest = event_digest(parent_digest, fields)
    database.execute(
        f"INSERT INTO history ({', '.join(fields)}, digest, parent_digest) VALUES (?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
        *fields.values(),
        digest,
        parent_digest,
    )
    return _event({**fields, "digest": digest, "parent_digest": parent_digest})


def events(database: Database, model: str | None, limit: int | None) -> list[Event]:
    """The last ``limit`` entries (all without), of one model or of all, oldest first."""
    chosen = "" if model is None else "WHERE model = ?"
    values = [] if model is None else [model]
    rows = database.rows(
        f"SELECT * FROM history {chosen} ORDER BY seq DESC LIMIT ?",  # noqa: S608  one of two fixed texts
        *values,
        -1 if limit is None else limit,
    )
    return [_event(row) for row in reversed(rows)]


def verify_history(registry: Registry, kept: str | None = None) -> Verification:
    """Walk the whole chain; an edit, removal or reorder shows as the first seq that does not fit.

    ``kept`` is a head digest noted earlier, or how it begins: only it can show that the newest entries were cut off.
    """
    return verify(registry.database, kept)


def verify(database: Database, kept: str | None = None) -> Verification:
    """See :func:`verify_history`."""
    with database.reading():
        rows = database.rows("SELECT * FROM history ORDER BY seq")
        issued = database.value("SELECT seq FROM sqlite_sequence WHERE name = 'history'") or 0
    digest, known = ORIGIN, {ORIGIN}
    for expected, row in enumerate(rows, start=1):
        reason = _fault(row, expected, digest)
        if reason:
            return Verification(len(rows), digest, expected, reason)
        digest = row["digest"]
        known.add(digest)
    if issued > len(rows):
        return Verification(len(rows), digest, len(rows) + 1, f"entries {len(rows) + 1} to {issued} are gone")
    if kept is not None and kept != ORIGIN and not any(d.startswith(kept) for d in known - {ORIGIN}):
        return Verification(len(rows), digest, len(rows) + 1, "the kept digest is not in this history")
    return Verification(len(rows), digest)


@dataclass(frozen=True)
class Told:
    """Where heads and tags stand and what the records' digests are, as text by name, to be compared."""

    facts: dict[str, str]

    @classmethod
    def of_tables(cls, database: Database) -> Told:
        """What the tables hold."""
        return cls({row["name"]: str(row["value"]) for query in _FACTS for row in database.rows(query)})


def replay(database: Database) -> Told:
    """What the tables should hold, after all that the history tells."""
    facts: dict[str, str] = {}
    for event in events(database, None, None):
        told = event.payload
        if "record" in told:
            facts[f"{reference(str(event.model), event.number or 0)}"] = told["record"]
        if "registered" in told:
            facts[f"model {event.model}"] = told["registered"]
        if "tag" in told:
            facts[f"tag {event.model}@{told['tag']}"] = str(event.number)
        elif event.previous is not None or event.action in ("add", "branch"):  # these move a head
            facts[f"head of {event.model}@{told.get('branch', MAIN)}"] = str(event.number)
    return Told(facts)


_FACTS = (
    "SELECT 'model ' || name AS name, digest AS value FROM models",
    """SELECT models.name || '@' || iif(number = 0, 'base', number) AS name, versions.digest AS value
    FROM versions JOIN models ON models.id = versions.model""",
    """SELECT 'tag ' || models.name || '@' || tags.name AS name, number AS value
    FROM tags JOIN models ON models.id = tags.model""",
    """SELECT 'head of ' || models.name || '@' || branches.name AS name, head AS value
    FROM branches JOIN models ON models.id = branches.model""",
)


def _fault(row: Row, expected: int, parent_digest: str) -> str:
    if row["seq"] != expected:
        return f"entry {expected} is gone: {row['seq']} stands in its place"
    if row["parent_digest"] != parent_digest:
        return f"entry {expected} does not follow the one before it"
    fields = {name: row[name] for name in row.keys() if name not in ("digest", "parent_digest")}  # noqa: SIM118
    if event_digest(parent_digest, fields) != row["digest"]:
        return f"entry {expected} was changed after it was written"
    return ""


def _event(row: Row | Mapping[str, Any]) -> Event:
    values = {name: row[name] for name in row.keys()}  # noqa: SIM118  a Row iterates over its values
    try:
        values["payload"] = json.loads(values["payload"])
    except ValueError as error:
        raise Damaged(f"history entry {values['seq']} is damaged: {error}") from error
    return Event(**values)
