"""A bundle: one file that holds a manifest and the files it lists, as a zip in one exact form.

Members are stored, not compressed, lie end to end in the manifest's order, and have no dates, links, comments or extra
fields. A reader therefore rebuilds every byte of the zip's own structure and compares: whatever could trick an
ordinary unzip is another structure, and refused. Any unzip reads what this writes (APPNOTE 6.3).
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kswapctl.errors import IntegrityError, UnsafeInputError, UsageError
from kswapctl.export import manifest as listing
from kswapctl.export.files import require_file
from kswapctl.export.manifest import Listed, Manifest
from kswapctl.export.signature import LARGEST as LARGEST_SIGNATURE
from kswapctl.export.signature import NAME as SIGNATURE

LARGEST = 2**32 - 1
"""Bytes of a bundle: a plain zip counts no further."""
MOST = 10_000
"""Members."""
FIRST = (listing.NAME, SIGNATURE)
"""What stands before the files, in this order; the second may be absent."""
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION, _UNIX, _FIRST_DAY, _MODE = 20, 3 << 8, 0x21, 0o100644 << 16
_NAME = re.compile(
    r"manifest\.json|manifest\.sig\.json|base/model\.safetensors|adapters/[0-9]{4,6}-[0-9a-f]{12}/[a-z_]{1,40}\.[a-z]{1,16}"
)
_CHUNK = 2**20


@dataclass(frozen=True)
class Member:
    """One file inside: its name, checksum, size and where its bytes begin."""

    name: str
    checksum: int
    size: int
    start: int


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its structure proven; contents are proven when they are copied out."""

    path: Path
    members: dict[str, Member]
    manifest: Manifest
    signature: bytes | None
    """Who vouches for it, in :mod:`kswapctl.export.signature`'s form; not proven yet."""

    def fetch(self, name: str, listed: Listed, target: Path) -> None:
        """Copy a member's bytes to ``target``, once they prove to be those listed."""
        member = self.members[name]
        if member.size != listed.size:
            raise IntegrityError(f"{name} has {member.size} bytes, {listed.size} are listed", "get the bundle again")
        digest, checksum = hashlib.sha256(), 0
        with self.path.open("rb") as file, target.open("wb") as copy:
            for chunk in _chunks(file, member.start, member.size):
                digest.update(chunk)
                checksum = zlib.crc32(chunk, checksum)
                copy.write(chunk)
        if digest.hexdigest() != listed.sha256 or checksum != member.checksum:
            raise IntegrityError(f"{name} is not what the manifest lists: it was changed", "get the bundle again")


def write(path: Path, manifest: Manifest, files: Mapping[str, Path], signature: bytes | None = None) -> None:
    """Write a bundle; ``files`` are the members' sources by name. The same content gives the same bytes."""
    data = manifest.dump()
    first = {listing.NAME: data} | ({} if signature is None else {SIGNATURE: signature})
    total = len(data) + sum(listed.size for listed in manifest.members().values())
    if total + 2**20 > LARGEST:
        raise UsageError(f"{total / 1e9:.1f} GB do not fit a bundle", "leave out --with-base, or push to a folder")
    members: list[Member] = []
    with path.open("wb") as file:
        for name, content in first.items():
            _append(file, members, name, zlib.crc32(content), len(content))
            file.write(content)
        for name, listed in manifest.members().items():
            with files[name].open("rb") as source:
                checksum = 0
                for chunk in iter(lambda: source.read(_CHUNK), b""):
                    checksum = zlib.crc32(chunk, checksum)
                source.seek(0)
                _append(file, members, name, checksum, listed.size)
                for chunk in iter(lambda: source.read(_CHUNK), b""):
                    file.write(chunk)
        file.write(_directory(members, file.tell()))


def open_bundle(path: Path, expected: str = "") -> Bundle:
    """Open a bundle: its structure and its manifest are proven, no member is read.

    ``expected`` is the file's SHA-256, where whoever made it told it on another way.
    """
    require_file(path)
    if expected and not re.fullmatch("[0-9a-fA-F]{64}", expected):
        raise UsageError(f"{expected!r} is no SHA-256", "it has 64 hexadecimal digits")
    if expected and digest_of(path) != expected.lower():
        raise IntegrityError(f"{path.name} is not the file with that hash", "get it again, from somebody you trust")
    try:
        with path.open("rb") as file:
            members = _read_structure(file, path.stat().st_size)
            data, *signatures = [_whole(file, member) for member in members[:2] if member.name in FIRST]
    except _OddError as error:
        raise UnsafeInputError(f"{path.name} is not a bundle as kswapctl writes it: {error}", "get it again") from error
    manifest = listing.load(data)
    listing.check_names([member.name for member in members if member.name != SIGNATURE], manifest)
    signature = signatures[0] if signatures else None
    return Bundle(path, {member.name: member for member in members}, manifest, signature)


def _whole(file: BinaryIO, member: Member) -> bytes:
    data = b"".join(_chunks(file, member.start, member.size))
    if zlib.crc32(data) != member.checksum:
        raise IntegrityError(f"{member.name} was changed", "get the bundle again")
    return data


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _OddError(Exception):
    """The zip's structure is another than ours."""


def _read_structure(file: BinaryIO, size: int) -> list[Member]:
    """Every member, once all bytes between the members are those that we would have written."""
    count, length, start = _read_end(file, size)
    file.seek(start)
    directory = file.read(length)
    members = _read_directory(directory, count, start)
    if directory != _directory(members, start)[: -_END.size]:
        raise _OddError("its directory is in another form")
    at = 0
    for member in members:
        header = _local_header(member.name, member.checksum, member.size)
        file.seek(at)
        if file.read(len(header)) != header:
            raise _OddError(f"{member.name} begins otherwise than its directory says")
        at += len(header) + member.size
    if at != start:
        raise _OddError("there are bytes between its members")
    return members


def _read_end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Number of members, length and start of the directory."""
    if not _END.size <= size <= LARGEST:
        raise _OddError(f"it has {size} bytes")
    file.seek(size - _END.size)
    mark, _, _, count, _, length, start, _ = _END.unpack(file.read(_END.size))
    if mark != b"PK\5\6":
        raise _OddError("it does not end as a bundle does")
    if not 1 <= count <= MOST or length > count * (_CENTRAL.size + 100) or start + length + _END.size != size:
        raise _OddError("its directory cannot be as long as it says")
    file.seek(size - _END.size)
    if file.read(_END.size) != _end(count, length, start):
        raise _OddError("its end is in another form")
    return count, length, start


def _read_directory(directory: bytes, count: int, end: int) -> list[Member]:
    """Its members, which must all lie before ``end``, where the directory begins."""
    members, at, start = [], 0, 0
    for _ in range(count):
        if len(directory) - at < _CENTRAL.size:
            raise _OddError("its directory is cut off")
        fields = _CENTRAL.unpack_from(directory, at)
        checksum, size, name_length = fields[7], fields[9], fields[10]
        at += _CENTRAL.size
        name = directory[at : at + name_length].decode("latin-1")
        at += name_length
        if not _NAME.fullmatch(name):
            raise _OddError(f"a member is called {name[:80]!r}")
        start += len(_local_header(name, checksum, size))
        members.append(Member(name, checksum, size, start))
        start += size
        if start > end:
            raise _OddError(f"{name} cannot be as long as it says")
    _check_members(members)
    return members


def _check_members(members: list[Member]) -> None:
    names = [member.name for member in members]
    if names[0] != listing.NAME or members[0].size > listing.LARGEST:
        raise _OddError("its manifest is too large, or does not come first")
    if SIGNATURE in names and (names.index(SIGNATURE) != 1 or members[1].size > LARGEST_SIGNATURE):
        raise _OddError("its signature is too large, or does not come second")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _OddError(f"{name} is in it twice")
        seen.add(name)


def _append(file: BinaryIO, members: list[Member], name: str, checksum: int, size: int) -> None:
    file.write(_local_header(name, checksum, size))
    members.append(Member(name, checksum, size, file.tell()))


def _local_header(name: str, checksum: int, size: int) -> bytes:
    fields = (b"PK\3\4", _VERSION, 0, 0, 0, _FIRST_DAY, checksum, size, size, len(name), 0)
    return _LOCAL.pack(*fields) + name.encode("latin-1")


def _directory(members: list[Member], start: int) -> bytes:
    entries = b"".join(map(_entry, members))
    return entries + _end(len(members), len(entries), start)


def _entry(member: Member) -> bytes:
    sizes = (member.checksum, member.size, member.size, len(member.name))
    at = member.start - _LOCAL.size - len(member.name)
    fields = (b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, 0, 0, _FIRST_DAY, *sizes, 0, 0, 0, 0, _MODE, at)
    return _CENTRAL.pack(*fields) + member.name.encode("latin-1")


def _end(count: int, length: int, start: int) -> bytes:
    return _END.pack(b"PK\5\6", 0, 0, count, count, length, start, 0)


def _chunks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            raise IntegrityError("the bundle ends too early", "get it again")
        size -= len(chunk)
        yield chunk
