"""The schema's steps taken: a new database from the first, an older one from where it stands.

sqlite-utils takes them (its Migrations, https://sqlite-utils.datasette.io). This is the one module that imports it, and
the import costs a second where pandas is installed: import this module where it is used, never at the top of another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlite_utils

from . import layout
from .database import Database
from .durable import sync_folder, temporary_name, write_new
from .faults import point
from .history import append
from .schema import APPLICATION, VERSION, current
from .tables import STEPS


def build(path: Path) -> None:
    """Make a new database at ``path``, complete and synced."""
    write_new(path, b"", 0o666)
    database = Database(path)
    try:
        with database.writing():
            _climb(database, 0)
            append(database, action="init", payload={"registry": temporary_name()})
    finally:
        database.close()


def migrate(database: Database, folder: Path) -> None:
    """Move an older schema up in one transaction; a copy of the old database stays beside it."""
    with database.writing():
        found = current(database)
        if found == VERSION:  # somebody else was first
            return
        _keep_copy(folder, found)
        point("migrate.after_backup")
        _climb(database, found)
        append(database, action="migrate", payload={"from": found, "to": VERSION})
        point("migrate.after_steps")
    point("migrate.after_commit")


def _keep_copy(folder: Path, found: int) -> None:
    temporary = folder / layout.TEMPORARY / temporary_name()
    # another connection: the one that holds the write lock may not be copied from
    source = Database(folder / layout.DATABASE, read_only=True)
    try:
        source.copy_to(temporary)
    finally:
        source.close()
    temporary.replace(folder / f"registry.schema{found}.db")
    sync_folder(folder)


def _climb(database: Database, found: int) -> None:
    steps = _steps_above(found)
    # within writing() a step is a savepoint; by itself sqlite-utils begins deferred, and may find the database busy
    with database.lent() as connection:
        tables = sqlite_utils.Database(connection, execute_plugins=False)  # other people's code has no business here
        steps.apply(tables)
        tables.table(steps.migrations_table).drop()
    database.execute(f"PRAGMA application_id = {APPLICATION}")
    database.execute(f"PRAGMA user_version = {VERSION}")


def _steps_above(found: int) -> sqlite_utils.Migrations:
    steps = sqlite_utils.Migrations("kswap_registry")
    # What was taken stands in user_version, in the file's header: a newer registry is known before SQLite opens it. So
    # sqlite-utils' own table of it lives only as long as the transaction, under a name that no database has.
    steps.migrations_table = temporary_name()
    for number, statements in enumerate(STEPS[found:], found + 1):
        steps(name=f"schema {number}")(_step(statements))
    return steps


def _step(statements: tuple[str, ...]) -> Callable[[sqlite_utils.Database], None]:
    # SQL, not Table.create(): that knows no CHECK, no WITHOUT ROWID and no AUTOINCREMENT
    def take(tables: sqlite_utils.Database) -> None:
        for statement in statements:
            tables.execute(statement)

    return take
