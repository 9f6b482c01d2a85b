"""The schema's version and shape: know them, refuse a newer or a foreign one."""

from __future__ import annotations

import sqlite3
from functools import cache
from pathlib import Path

from . import layout
from .database import Database
from .durable import open_regular
from .errors import Damaged, NewerSchema, NoRegistry
from .tables import STEPS

APPLICATION = 0x6B737770
"""SQLite's application_id: 'kswp'."""

VERSION = len(STEPS)
"""The schema this code writes."""


def check_header(folder: Path) -> int:
    """The schema version in the file's first bytes, read without SQLite: a newer registry is not touched."""
    path = folder / layout.DATABASE
    with open_regular(path, follow=False) as file:
        header = file.read(100)
    if len(header) < 100 or header[:16] != b"SQLite format 3\0":
        raise Damaged(f"{path} is not a registry's database, or was cut short")
    if int.from_bytes(header[68:72], "big") != APPLICATION:
        raise NoRegistry(folder, f": {path.name} belongs to another program")
    found = int.from_bytes(header[60:64], "big")
    if found > VERSION:
        raise NewerSchema(folder, found, VERSION)
    if header[18:20] != b"\1\1":
        raise Damaged(f"{path} is in write-ahead mode, which a registry never uses")
    return found


def check_shape(database: Database) -> None:
    """Refuse a database whose tables, indexes or triggers are not exactly ours."""
    found, wanted = _shape(database), _wanted_shape()
    for name in sorted(found.keys() ^ wanted.keys()):
        verb = "has a foreign" if name in found else "lacks its"
        raise Damaged(f"{database.path} {verb} {name}")
    for name in sorted(wanted):
        if found[name] != wanted[name]:
            raise Damaged(f"{database.path} has a changed {name}")


def current(database: Database) -> int:
    """The schema version of an open database."""
    return int(database.value("PRAGMA user_version"))


@cache
def _wanted_shape() -> dict[str, str]:
    connection = sqlite3.connect(":memory:")
    try:
        for step in STEPS:
            for statement in step:
                connection.execute(statement)
        return {f"{kind} {name}": " ".join(sql.split()) for kind, name, sql in connection.execute(_SHAPE)}
    finally:
        connection.close()


def _shape(database: Database) -> dict[str, str]:
    return {f"{kind} {name}": " ".join(sql.split()) for kind, name, sql in database.rows(_SHAPE)}


_SHAPE = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite@_%' ESCAPE '@'"
