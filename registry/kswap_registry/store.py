"""The registry: the one object that callers hold. It answers without a lock and changes under one."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from . import creation, filesystem, history, layout, names, reading, refs, schema, writing
from .blobs import Blob, BlobStore
from .database import Database
from .digests import text
from .durable import open_regular
from .errors import AlreadyExists, Damaged, MissingBlob, NoRegistry, ReadOnly, UnknownVersion, storage_errors
from .faults import point
from .lock import Holder, WriterLock
from .operation import Operation, Plan, close_dead
from .records import Attempt, Event, Model, Version
from .tombstones import require, why_missing

OnWait = Callable[[Holder], None]


class Registry:
    """A folder with a database, blobs and a key. Use one object per process and thread."""

    def __init__(self, folder: Path, database: Database, lock: WriterLock) -> None:
        self.folder = folder
        self.database = database
        self.store = BlobStore(folder)
        self._lock = lock

    @classmethod
    def create(cls, folder: Path, *, timeout: float = 10.0, on_wait: OnWait | None = None) -> Registry:
        """Make a registry in ``folder``, or open the one that is there."""
        creation.create(folder.absolute())
        return cls.open(folder, timeout=timeout, on_wait=on_wait)

    @classmethod
    def open(
        cls, folder: Path, *, read_only: bool = False, timeout: float = 10.0, on_wait: OnWait | None = None
    ) -> Registry:
        """Open a registry; an older schema is moved up, with a copy kept, a newer one refused untouched.

        A writer waits ``timeout`` seconds for another; ``on_wait`` is told once for whom.
        """
        folder = folder.absolute()  # the caller may change directory later
        with storage_errors(folder):
            if not (folder / layout.DATABASE).exists():
                raise NoRegistry(folder)
            schema.check_header(folder)
        database = Database(folder / layout.DATABASE, read_only=read_only)
        registry = cls(folder, database, WriterLock(folder / layout.LOCK, timeout, on_wait))
        try:
            registry._bring_up_to_date()
        except BaseException:
            registry.close()
            raise
        return registry

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def models(self) -> list[Model]:
        """All models, by name."""
        return reading.models(self.database)

    def model(self, name: str) -> Model:
        """One model; UnknownModel names the nearest ones."""
        return reading.model(self.database, name)

    def resolve(self, ref: str) -> Version:
        """The version that 'faces', 'faces@2', 'faces@base', 'faces@-1' (steps back) or 'faces@tag' names."""
        return reading.resolve(self.database, ref)

    def versions(self, model_name: str, limit: int | None = None) -> list[Version]:
        """A model's versions, the base first; with ``limit`` only the newest ones."""
        return reading.versions(self.database, model_name, limit)

    def stack(self, version: Version) -> list[Version]:
        """The versions that ``version`` is composed of, from the first above the base; none for the base."""
        return reading.stack(self.database, version)

    def events(self, model_name: str | None = None, limit: int | None = None) -> list[Event]:
        """The history, oldest first; with ``limit`` only the newest entries."""
        return history.events(self.database, model_name, limit)

    def attempts(self, model_name: str | None = None, limit: int | None = None) -> list[Attempt]:
        """The operations that were begun, however they ended, oldest first; with ``limit`` the newest ones."""
        return reading.attempts(self.database, model_name, limit)

    def tags(self, model_name: str) -> dict[str, int]:
        """A model's tags and the version numbers they stand at."""
        return reading.tags(self.database, model_name)

    def branches(self, model_name: str) -> dict[str, int]:
        """A model's branches and the version numbers they are at; 'main' is always one."""
        return reading.branches(self.database, model_name)

    def blob(self, digest: str, *, verify: bool = False) -> Path:
        """The path of a stored file, once it is known to be one (``verify``: with the right content)."""
        size = self.database.value("SELECT size FROM blobs WHERE digest = ?", digest)
        if size is None:
            raise MissingBlob(digest, " (nothing in this registry refers to it)")
        try:
            return self.store.check(Blob(digest, size), deep=verify)
        except MissingBlob as error:
            raise why_missing(self.database, error, digest) from None

    def commitment(self, data: bytes) -> str:
        """HMAC-SHA256 of ``data`` with the registry's key: proves later what was used, and tells nothing."""
        path = self.folder / layout.KEY
        try:
            with open_regular(path, follow=False) as file:
                return hmac.digest(file.read(), data, "sha256").hex()
        except FileNotFoundError:
            raise Damaged(f"the registry's key {path} is gone") from None
        except OSError as error:
            raise ReadOnly(f"the registry's key {path} cannot be read: {error.strerror}", "ask its owner") from error

    def add_model(
        self,
        name: str,
        *,
        task: str,
        source: str,
        spec: Mapping[str, Any],
        classes: Sequence[str],
        fingerprint: str,
        files: Mapping[str, Path],
        command: str = "",
    ) -> Model:
        """Register a checkpoint: its files become blobs, it gets a base version, its head stands there."""
        names.check_model_name(name)
        checkpoint = writing.Checkpoint(name, task, source, spec, list(classes), fingerprint)
        with self.exclusive(command):
            writing.refuse_known(self.database, name)
            blobs = self.store.add_all(files)
            with storage_errors(self.folder):
                point("add.before_rows")
                with self.database.writing():
                    writing.check_blobs(self.store, blobs)
                    writing.insert_model(self.database, checkpoint, blobs)
                    history.append(
                        self.database,
                        action="add",
                        model=name,
                        number=0,
                        command=command,
                        payload=writing.told(self.database, name),
                    )
                    point("add.after_rows")
                point("add.after_commit")
        return self.model(name)

    @contextmanager
    def operation(
        self,
        model_name: str,
        *,
        kind: str,
        method: str,
        spec: Mapping[str, Any],
        command: str = "",
        environment: Mapping[str, Any] | None = None,
        branch: str = refs.MAIN,
    ) -> Iterator[Operation]:
        """A learn or forget: holds the writer's lock, records how it ends, cleans its scratch folder."""
        plan = Plan(kind, method, spec, command, environment or {}, branch)
        with self.exclusive(command):
            operation = Operation(self.database, self.store, model_name, plan)
            try:
                operation.begin()
                yield operation
            except BaseException as error:
                operation.close(error)
                raise
            operation.close(None)

    def move_head(
        self,
        model_name: str,
        number: int,
        *,
        action: str = "rollback",
        command: str = "",
        note: str = "",
        branch: str = refs.MAIN,
        expected: int | None = None,
    ) -> Version:
        """Move a head, which must be ``expected`` if that is given, to any version there is; recorded if it moves."""
        require(self, self.resolve(f"{model_name}@{number or 'base'}"))
        with self.exclusive(command), storage_errors(self.folder):
            with self.database.writing():
                model = self._version_row(model_name, number)
                if (previous := refs.head(self.database, model, branch)) != number:
                    move = writing.Move(model, branch, previous if expected is None else expected, number)
                    writing.move_head(self.database, move)
                    point("head.after_move")
                    history.append(
                        self.database,
                        action=action,
                        model=model_name,
                        number=number,
                        previous=previous,
                        command=command,
                        payload={"branch": branch, "note": note},
                    )
                point("head.after_history")
            point("head.after_commit")
        return self.resolve(f"{model_name}@{branch}")

    def tag(
        self,
        model_name: str,
        number: int,
        name: str,
        *,
        command: str = "",
        note: str = "",
        force: bool = False,
    ) -> None:
        """Give a version a name; a tag that stands elsewhere is moved only by ``force``."""
        names.check_label(name, "tag")
        with storage_errors(self.folder):
            with self.database.writing():
                model = self._version_row(model_name, number)
                previous = refs.tagged(self.database, model, name)
                if previous not in (None, number) and not force:
                    raise AlreadyExists(
                        f"the tag {name!r} stands at {model_name}@{previous or 'base'}",
                        "choose another name, or move it with --force",
                    )
                writing.set_tag(self.database, model, name, number)
                point("tag.after_row")
                history.append(
                    self.database,
                    action="tag",
                    model=model_name,
                    number=number,
                    previous=previous,
                    command=command,
                    payload={"tag": name, "note": note},
                )
            point("tag.after_commit")

    def branch(self, model_name: str, name: str, number: int, *, command: str = "") -> None:
        """Start a second line of a model at a version; 'faces@name' is its head from then on."""
        names.check_label(name, "branch")
        with storage_errors(self.folder):
            with self.database.writing():
                model = self._version_row(model_name, number)
                writing.insert_branch(self.database, model, name, number)
                point("branch.after_row")
                history.append(
                    self.database,
                    action="branch",
                    model=model_name,
                    number=number,
                    command=command,
                    payload={"branch": name},
                )
            point("branch.after_commit")

    def record(
        self,
        model_name: str,
        action: str,
        payload: Mapping[str, Any],
        *,
        number: int | None = None,
        command: str = "",
    ) -> Event:
        """Add an entry to the history that makes no version: a merge, an export, an audit."""
        with storage_errors(self.folder):
            with self.database.writing():
                self._version_row(model_name, number or 0)
                event = history.append(
                    self.database,
                    action=action,
                    model=model_name,
                    number=number,
                    command=command,
                    payload=payload,
                )
                point("record.after_history")
            point("record.after_commit")
        return event

    def require_space(self, needed: int) -> None:
        """Refuse to begin when the disk has less than ``needed`` bytes free."""
        filesystem.require_space(self.folder, needed, "for instance with 'kswapctl gc'")

    def require_writable(self) -> None:
        """Refuse to begin work that could not be recorded."""
        with storage_errors(self.folder), self.database.writing():
            pass

    @contextmanager
    def exclusive(self, command: str = "") -> Iterator[None]:
        """The writer's lock for several changes in a row; each of them takes it by itself otherwise."""
        if self.database.read_only:
            raise ReadOnly(f"the registry in {self.folder} is open read-only", "open it for writing")
        outermost = self._lock.acquire(text(command, "command"))
        try:
            if outermost:
                with storage_errors(self.folder):
                    creation.make_folders(self.folder)
                close_dead(self.database)
            yield
        finally:
            self._lock.release()

    def _bring_up_to_date(self) -> None:
        if schema.current(self.database) < schema.VERSION:
            self._migrate()
        schema.check_shape(self.database)

    def _migrate(self) -> None:
        if self.database.read_only:
            raise ReadOnly(f"the registry in {self.folder} has an older schema", "open it once for writing")
        from . import migration  # only here: it imports sqlite-utils

        self._lock.acquire("migrate")  # not exclusive(): that reads tables which may not be there yet
        try:
            with storage_errors(self.folder):
                creation.make_folders(self.folder)
                migration.migrate(self.database, self.folder)
        finally:
            self._lock.release()

    def _version_row(self, model_name: str, number: int) -> int:
        model = refs.model_row(self.database, model_name)
        if not refs.exists(self.database, model, number):
            raise UnknownVersion(f"{model_name}@{number}", refs.known(self.database, model, model_name))
        return model
