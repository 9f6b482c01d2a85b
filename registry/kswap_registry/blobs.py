"""The blob store: files named by their SHA-256, written so that a name always means whole content.

Order (W4-W7): copy to tmp/, sync, read back and hash, mode 0444, rename to blobs/<aa>/<sha256>, sync the
folders.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import layout
from .durable import allowed_mode, chunks, hash_file, open_regular, sort_of_file, sync_folder, temporary_name
from .errors import CorruptBlob, Damaged, MissingBlob, UnsafeFile, storage_errors
from .faults import point

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Blob:
    """A stored file: its SHA-256 and size in bytes."""

    digest: str
    size: int


class BlobStore:
    """The files of one registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / layout.BLOBS
        self._temporary = folder / layout.TEMPORARY

    def path(self, digest: str) -> Path:
        """Where a blob of this digest lies, or would lie."""
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):  # a damaged row may hold anything
            raise Damaged(f"{str(digest)[:80]!r} is not the digest of a blob")
        return self.folder / digest[:2] / digest

    def add_all(self, files: Mapping[str, Path]) -> dict[str, Blob]:
        """Store several files; returns their blobs under the same names."""
        with storage_errors(self.folder.parent):
            return {name: self.add(source) for name, source in files.items()}

    def add(self, source: Path) -> Blob:
        """Store one file; storing the same content again changes nothing."""
        temporary = self._temporary / f"{temporary_name()}.blob"
        try:
            blob = _copy(source, temporary)
            point("blob.after_sync")
            if hash_file(temporary) != blob.digest:
                raise CorruptBlob(blob.digest, "the disk gave back other bytes than were written")
            point("blob.after_verify")
            temporary.chmod(allowed_mode(0o444))
            self._publish(temporary, blob)
        finally:
            temporary.unlink(missing_ok=True)
        point("blob.after_folder_sync")
        return blob

    def check(self, blob: Blob, *, deep: bool) -> Path:
        """The path of a blob, once it is known to be a regular file of its size (``deep``: and content)."""
        path = self.path(blob.digest)
        with storage_errors(self.folder.parent):
            self._check_sort(path, blob)
            if deep and hash_file(path) != blob.digest:
                raise CorruptBlob(blob.digest, "its content does not have the hash it is named by")
        return path

    def present(self) -> Iterator[Path]:
        """Everything that lies in the store, whatever it is."""
        for shard in sorted(self.folder.iterdir()):
            if shard.is_dir() and not shard.is_symlink():
                yield from sorted(shard.iterdir())
            else:
                yield shard

    def _publish(self, temporary: Path, blob: Blob) -> None:
        final = self.path(blob.digest)
        if not final.parent.exists():
            final.parent.mkdir(exist_ok=True)
            sync_folder(self.folder)
        if self._is_sound(blob):
            os.utime(final)  # young again, so that a clean-up does not take it from under us
            sync_folder(final.parent)  # who put it there may have been killed before that
            return
        temporary.replace(final)  # also heals a damaged blob: a new file, the old one is never written into
        point("blob.after_rename")
        sync_folder(final.parent)
        sync_folder(self._temporary)

    def _is_sound(self, blob: Blob) -> bool:
        try:
            self.check(blob, deep=True)
        except (MissingBlob, CorruptBlob):
            return False
        return True

    def _check_sort(self, path: Path, blob: Blob) -> None:
        for place in (path.parent, path):
            try:
                status = place.lstat()
            except FileNotFoundError:
                raise MissingBlob(blob.digest) from None
            wanted = stat.S_ISREG if place == path else stat.S_ISDIR
            if not wanted(status.st_mode):
                raise UnsafeFile(place, sort_of_file(status.st_mode))
        if status.st_size != blob.size:
            raise CorruptBlob(blob.digest, f"it has {status.st_size} bytes, {blob.size} were stored")


def _copy(source: Path, temporary: Path) -> Blob:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open_regular(source, follow=True) as original, os.fdopen(descriptor, "wb") as copy:
        for chunk in chunks(original):
            digest.update(chunk)
            size += copy.write(chunk)
        copy.flush()
        point("blob.after_copy")
        os.fsync(copy.fileno())
    return Blob(digest.hexdigest(), size)
