"""Files that are there after a power cut: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import UnsafeFile

_CHUNK = 1 << 20


def temporary_name() -> str:
    """A name nobody else uses."""
    return os.urandom(16).hex()


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet, and sync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def publish_once(temporary: Path, final: Path) -> None:
    """Give ``temporary`` its final name unless somebody was first; the temporary name goes either way.

    A link, not a rename: a rename would replace what the other one published.
    """
    try:
        os.link(temporary, final)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    sync_folder(final.parent)


@contextmanager
def open_regular(path: Path, *, follow: bool) -> Iterator[BinaryIO]:
    """Open a regular file; a FIFO, device or folder (and a symlink, unless ``follow``) is refused."""
    flags = os.O_RDONLY | os.O_NONBLOCK  # or opening a FIFO waits for ever
    try:
        descriptor = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    except OSError:
        if not follow and path.is_symlink():
            raise UnsafeFile(path, "a symbolic link") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise UnsafeFile(path, sort_of_file(mode))
    with os.fdopen(descriptor, "rb") as file:
        yield file


def sort_of_file(mode: int) -> str:
    """What a file that is not a regular one is, in words."""
    known = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO"}
    return known.get(stat.S_IFMT(mode), "a device or socket")


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file, a megabyte at a time."""
    return iter(lambda: file.read(_CHUNK), b"")


def hash_file(path: Path) -> str:
    """The SHA-256 of a regular file, in hex."""
    digest = hashlib.sha256()
    with open_regular(path, follow=False) as file:
        for chunk in chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def allowed_mode(wanted: int) -> int:
    """``wanted`` less what the user's umask takes away."""
    umask = os.umask(0o077)  # it can only be read by setting it; meanwhile the strict one
    os.umask(umask)
    return wanted & ~umask
