"""One learn or forget in progress: a scratch folder, the parent it began on, and the commit that ends it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import clock, history, identity, layout, reading, refs, writing
from .blobs import Blob, BlobStore
from .database import Database
from .digests import canonical, text
from .durable import temporary_name
from .errors import RegistryError, storage_errors
from .faults import point
from .names import check_label
from .records import Version


@dataclass(frozen=True)
class Plan:
    """What an operation is about to do, as recorded before it starts."""

    kind: str
    method: str
    spec: Mapping[str, Any]
    command: str
    environment: Mapping[str, Any]
    branch: str


class Operation:
    """A change being made; the registry holds the writer's lock while it lasts."""

    def __init__(self, database: Database, store: BlobStore, name: str, plan: Plan) -> None:
        self._database = database
        self._store = store
        self._plan = plan
        with database.writing():
            self._model = refs.model_row(database, name)
            self.parent: Version = reading.version(database, self._model, refs.head(database, self._model, plan.branch))
            token = temporary_name()
            self._row = self._record(token)
        self.folder: Path = database.path.parent / layout.TEMPORARY / token
        self.version: Version | None = None

    def begin(self) -> None:
        """Make the scratch folder; the running row is committed by now."""
        with storage_errors(self._database.path.parent):
            point("operation.after_begin")
            self.folder.mkdir()

    def stand_on(self, number: int) -> None:
        """Work on another version than the head: the commit then goes ``onto`` a branch, or the head comes there."""
        with storage_errors(self._database.path.parent):
            with self._database.writing():
                self.parent = reading.version(self._database, self._model, number)
                self._database.execute("UPDATE operations SET parent = ? WHERE id = ?", number, self._row)
            point("operation.after_stand")

    def commit(
        self,
        files: Mapping[str, Path],
        *,
        state: Mapping[str, Any],
        adapter: str,
        weights: str,
        metrics: Mapping[str, float],
        note: str = "",
        onto: str | None = None,
    ) -> Version:
        """Store the files; then, in one transaction, record the version, move the head, write the history.

        After HeadMoved the work is still here: commit it ``onto`` a new branch that starts at the parent.
        """
        assert self.version is None, "an operation commits once"
        plan = self._plan
        if onto is not None:
            check_label(onto, "branch")
        change = writing.Change(plan.kind, plan.method, plan.spec, state, adapter, weights, metrics, note)
        blobs = self._store.add_all(files)
        with storage_errors(self._database.path.parent):
            point("commit.before_rows")
            with self._database.writing():
                number = self._write(change, blobs, onto)
            point("commit.after_commit")
        self.version = reading.resolve(self._database, f"{self.parent.model}@{number or 'base'}")
        return self.version

    def close(self, error: BaseException | None) -> None:
        """Note how it ended, unless it was committed, and remove the scratch folder."""
        state = "abandoned" if error is None else "failed" if isinstance(error, Exception) else "interrupted"
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.version is not None:
            return
        try:
            with storage_errors(self._database.path.parent):
                point("operation.before_close")
                with self._database.writing():
                    self._end(state, "" if error is None else f"{type(error).__name__}: {error}")
        except RegistryError:
            # The disk is full or gone: the next writer marks it. What went wrong first is what counts.
            if error is None:
                raise

    def _end(self, state: str, error: str) -> None:
        self._database.execute(
            "UPDATE operations SET state = ?, ended = ?, error = ? WHERE id = ? AND state = 'running'",
            state,
            clock.stamp(),
            text(error.replace("\0", ""), "error"),
            self._row,
        )

    def _record(self, token: str) -> int:
        fields = {
            "folder": token,
            "model": self._model,
            "parent": self.parent.number,
            "branch": self._plan.branch,
            "kind": text(self._plan.kind, "kind"),
            "method": text(self._plan.method, "method"),
            "spec": canonical(dict(self._plan.spec), "spec"),
            "command": text(self._plan.command, "command"),
            "environment": canonical(dict(self._plan.environment), "environment"),
            "user": text(identity.user(), "user"),
            "owner": identity.process(),
            "started": clock.stamp(),
            "state": "running",
        }
        return writing.insert(self._database, "operations", fields)

    def _write(self, change: writing.Change, blobs: Mapping[str, Blob], onto: str | None) -> int:
        database, model, parent = self._database, self._model, self.parent
        branch = onto or self._plan.branch
        writing.check_blobs(self._store, blobs)
        if onto is not None:
            writing.insert_branch(database, model, onto, parent.number)
        number = writing.insert_version(database, model, parent.number, change, blobs)
        point("commit.after_rows")
        writing.move_head(database, writing.Move(model, branch, parent.number, number))
        point("commit.after_head")
        written = reading.version(database, model, number)
        payload = {
            "operation": self._row,
            "branch": branch,
            "method": change.method,
            "spec": written.spec,
            "environment": dict(self._plan.environment),
            "fingerprint": written.fingerprint,
            "files": written.files,
            "record": reading.digest_of(database, model, number),
        }
        history.append(
            database,
            action=change.kind,
            model=parent.model,
            number=number,
            previous=parent.number,
            command=self._plan.command,
            payload=payload,
        )
        point("commit.after_history")
        database.execute(
            "UPDATE operations SET state = 'done', ended = ?, error = NULL, version = ? WHERE id = ?",
            clock.stamp(),
            number,
            self._row,
        )
        return number


def close_dead(database: Database) -> None:
    """Mark operations whose process is gone; called by the next writer, who has the lock they had."""
    if database.value("SELECT 1 FROM operations WHERE state = 'running'") is None:
        return
    with database.writing():
        for row in database.rows("SELECT id, owner FROM operations WHERE state = 'running'"):
            if identity.lives_elsewhere(row["owner"]):  # the lock does not lock here (some network disks)
                continue
            database.execute(
                "UPDATE operations SET state = 'failed', ended = ?, error = ? WHERE id = ?",
                clock.stamp(),
                "its process died",
                row["id"],
            )
