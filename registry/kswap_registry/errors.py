"""The errors of the registry: each says what, which and what to do now, and carries its exit code."""

# ruff: noqa: N818  the names are what users and callers say: UnknownVersion, not UnknownVersionError

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class RegistryError(Exception):
    """Something the registry refuses or cannot do; the root of this tree."""

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadName(RegistryError):
    """A model, tag or branch name outside the policy."""

    exit_code = 2
    kind = "bad-name"


class BadValue(RegistryError):
    """A value the registry cannot keep: NUL in a text, NaN in a metric, an object that is not JSON."""

    exit_code = 2
    kind = "bad-value"


class AlreadyExists(RegistryError):
    """A model, tag, branch or folder of that name is there already."""

    exit_code = 2
    kind = "already-exists"


class UnknownModel(RegistryError):
    """No model of that name."""

    exit_code = 3
    kind = "unknown-model"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        model, version, _ = name.partition("@")
        hint = f"{name!r} is a version: name its model, {model!r}" if version and model in names else ""
        super().__init__(f"no model {name!r} in this registry", hint or _suggest(name, names))


class UnknownVersion(RegistryError):
    """No version, tag or branch that the reference names."""

    exit_code = 3
    kind = "unknown-version"

    def __init__(self, reference: str, known: str) -> None:
        super().__init__(f"no version {reference!r}", f"known: {known}")


class NoRegistry(RegistryError):
    """The folder holds no registry."""

    exit_code = 10
    kind = "no-registry"

    def __init__(self, folder: Path, reason: str = "") -> None:
        super().__init__(f"no registry in {folder}{reason}", "make one with 'kswapctl init', or name its folder")


class Busy(RegistryError):
    """Another process is writing."""

    exit_code = 11
    kind = "busy"


class HeadMoved(RegistryError):
    """The head is no longer where the operation began."""

    exit_code = 11
    kind = "head-moved"

    def __init__(self, branch: str, expected: str, found: str) -> None:
        super().__init__(
            f"the head of {branch} moved from {expected} to {found} meanwhile",
            f"repeat the operation on {found}, or keep this work on a branch of its own",
        )
        self.expected, self.found = expected, found


class Damaged(RegistryError):
    """The database does not hold what it should."""

    exit_code = 12
    kind = "damaged"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint or "look with 'kswapctl doctor', then restore a backup")


class MissingBlob(RegistryError):
    """A recorded file is not in the store."""

    exit_code = 12
    kind = "missing-blob"

    def __init__(self, digest: str, owner: str = "") -> None:
        super().__init__(f"blob {digest[:12]}{owner} is missing", "restore it from a backup or another registry")


class CorruptBlob(RegistryError):
    """A file in the store is not what was recorded."""

    exit_code = 12
    kind = "corrupt-blob"

    def __init__(self, digest: str, reason: str) -> None:
        super().__init__(f"blob {digest[:12]} is damaged: {reason}", "restore it from a backup or another registry")


class PurgedBlob(RegistryError):
    """A recorded file was removed for good, on purpose."""

    exit_code = 3
    kind = "purged"

    def __init__(self, digest: str, model: str, when: str, replaced: Iterable[str]) -> None:
        super().__init__(
            f"{model} was purged at {when[:19]}, and blob {digest[:12]} with it",
            f"what its heads were merged to is here: {', '.join(replaced)}",
        )


class StillNeeded(RegistryError):
    """A purge would take what a head still needs."""

    exit_code = 2
    kind = "still-needed"


class NotConfirmed(RegistryError):
    """A purge was asked for without the model's name."""

    exit_code = 2
    kind = "not-confirmed"

    def __init__(self, name: str, said: str) -> None:
        super().__init__(f"{said!r} is not the model's name", f"a purge cannot be undone; to confirm it, say {name}")


class NewerSchema(RegistryError):
    """The registry was written by a newer release."""

    exit_code = 14
    kind = "newer-schema"

    def __init__(self, folder: Path, found: int, known: int) -> None:
        super().__init__(
            f"the registry in {folder} has schema {found}, this release knows up to {known}",
            "upgrade kswapctl; nothing was changed",
        )


class UnsafeFile(RegistryError):
    """A path that should be a regular file is something else."""

    exit_code = 15
    kind = "unsafe-file"

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(f"{path} is {found}, not a regular file", "remove it, or give the file itself")


class StorageError(RegistryError):
    """The disk, its permissions or its space failed us."""

    exit_code = 16
    kind = "storage"


class ReadOnly(StorageError):
    """A write to a registry that was opened, or lies, read-only."""

    kind = "read-only"


class StorageFull(StorageError):
    """No space left."""

    kind = "disk-full"


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TAKEN = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def storage_error(error: OSError, folder: Path) -> StorageError:
    """The registry's error for what the operating system said about a file under ``folder``."""
    what = f"{error.strerror or error} ({error.filename or folder})"
    if error.errno in _FULL:
        return StorageFull(f"no space for the registry: {what}", "free some space and run the command again")
    if error.errno in _DENIED:
        return ReadOnly(f"the registry cannot be written: {what}", f"check the permissions of {folder}")
    if error.errno in _TAKEN:
        return StorageError(f"something else is where the registry belongs: {what}", "move it, or name another folder")
    return StorageError(f"the registry's disk failed: {what}", f"check that {folder} is there and healthy")


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn any OSError inside into a StorageError about ``folder``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, folder) from error


def _suggest(name: str, known: list[str]) -> str:
    if not known:
        return "there are none yet: add one with 'kswapctl add'"
    import difflib  # only here: it costs more than opening a registry

    nearest = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return (f"did you mean {nearest[0]!r}? " if nearest else "") + f"known: {listed}"
