"""One connection to registry.db: its settings, its transactions, and SQLite's errors put into our words."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .errors import Busy, Damaged, ReadOnly, RegistryError, StorageError, StorageFull

Row = sqlite3.Row

PATIENCE = 10.0
"""Seconds to wait for another's transaction; ours take milliseconds, and so should theirs."""

_OLDEST = (3, 37, 0)  # the first with STRICT tables

# EXTRA also syncs the folder after the journal is gone; trusted_schema=OFF disarms functions hidden in a
# foreign schema; recursive_triggers makes REPLACE meet the triggers that forbid deleting.
_SETTINGS = (
    "PRAGMA synchronous = EXTRA",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA recursive_triggers = ON",
    "PRAGMA cell_size_check = ON",
)


class Database:
    """A connection that belongs to the process that made it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        if sqlite3.sqlite_version_info < _OLDEST:
            raise RegistryError(
                f"SQLite 3.37 or newer is needed, this is {sqlite3.sqlite_version}", "use a newer Python"
            )
        self.path = path
        self.read_only = read_only
        self._process = os.getpid()
        # mode=rw, never rwc: a registry that vanished must not come back empty
        address = f"file:{quote(os.fsencode(path.absolute()))}?mode={'ro' if read_only else 'rw'}"
        with self._translated():
            self._connection = sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        try:
            if read_only:
                self._undo_what_was_cut_short()
            for setting in _SETTINGS:
                self.execute(setting)
        except RegistryError:
            self._connection.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Run one statement."""
        # SQLite must not be used across a fork (a data loader's worker inherits this object)
        assert os.getpid() == self._process, "a registry is used only by the process that opened it"
        with self._translated():
            return self._connection.execute(statement, values)

    def rows(self, statement: str, *values: Any) -> list[Row]:
        """All rows of a query."""
        cursor = self.execute(statement, *values)
        with self._translated():
            return cursor.fetchall()

    def row(self, statement: str, *values: Any) -> Row | None:
        """The first row of a query, if any."""
        found = self.rows(statement, *values)
        return found[0] if found else None

    def value(self, statement: str, *values: Any) -> Any:
        """The first column of the first row, or None."""
        found = self.row(statement, *values)
        return found[0] if found else None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One snapshot for several queries; inside another transaction, that one's."""
        if self._connection.in_transaction:
            yield
            return
        with self._transaction("BEGIN"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction with the write lock from its first moment: it never turns out busy half-way."""
        if self.read_only:
            raise ReadOnly(f"{self.path} is open read-only", "open the registry for writing")
        with self._transaction("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def lent(self) -> Iterator[sqlite3.Connection]:
        """The bare connection, for a library that wants one; what SQLite says inside is put into our words."""
        with self._translated():
            yield self._connection

    def copy_to(self, path: Path) -> None:
        """A consistent copy of the database, also while others write."""
        with self._translated():
            target = sqlite3.connect(path)
            try:
                self._connection.backup(target)
            finally:
                target.close()

    def _undo_what_was_cut_short(self) -> None:
        """Roll back the change of a writer that was killed: a connection that only reads may not, and would fail."""
        try:
            self._connection.execute(_LOOK).fetchone()
        except sqlite3.Error as error:
            if error.sqlite_errorcode not in _CUT_SHORT:
                raise translate(error, self.path) from error
            writer = Database(self.path)
            try:
                writer.value(_LOOK)
            finally:
                writer.close()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self.execute(begin)
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a failed COMMIT may have rolled back already
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # a damaged schema even garbles SQLite's message
            raise translate(error, self.path) from error


_LOOK = "SELECT count(*) FROM sqlite_schema"
_CUT_SHORT = {sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY}
_FULL = {sqlite3.SQLITE_FULL}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DISK = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}


def translate(error: Exception, path: Path) -> RegistryError:
    """What SQLite said about ``path``, as one of our errors."""
    whole = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    code = whole & 0xFF  # the low byte is the primary code
    if whole in _CUT_SHORT:
        return ReadOnly(
            f"{path} holds a change that was cut short, and cannot be written to take it back",
            "run the command once as someone who may write there",
        )
    if code in _FULL:
        return StorageFull(f"no space for {path}: {error}", "free about a megabyte and run the command again")
    if code in _BUSY:
        return Busy(f"{path} is locked by another process", "try again in a moment")
    if code in _DISK:
        return StorageError(f"{path} cannot be used: {error}", "check its permissions, its disk and the free space")
    if code == sqlite3.SQLITE_READONLY:
        return ReadOnly(f"{path} cannot be written: {error}", "check the permissions of the file and its folder")
    return Damaged(f"{path} is damaged: {error}")
