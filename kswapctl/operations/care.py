"""Keep a registry healthy: check and repair it, clean it up, copy it away and back. Needs torch only to go deep."""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from kswap_registry import PurgedBlob, Registry, RegistryError, copies, doctor
from kswap_registry.doctor import Finding, Moved

from kswapctl.errors import IntegrityError, KswapError, NotFoundError, UnsafeInputError, UsageError
from kswapctl.export.files import check_free, outside, written_whole
from kswapctl.progress import Progress

ARCHIVE = ".tar"
"""Suffix of a backup that is one file."""
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_MEMBER = re.compile(r"registry\.db|key|blobs|tmp|blobs/[0-9a-f]{2}|blobs/[0-9a-f]{2}/[0-9a-f]{64}", re.ASCII)
"""What a backup may hold."""


@dataclass(frozen=True)
class Examination:
    """What the doctor found, and what was moved out of the way."""

    findings: list[Finding]
    moved: list[Moved]

    @property
    def sound(self) -> bool:
        """Whether nothing serious is left."""
        return not any(finding.serious for finding in self.findings)


def examine(registry: Registry, deep: bool, fix: bool, command: str, progress: Progress) -> Examination:
    """Check the invariants; ``fix`` puts damaged blobs and remains into quarantine first; ``deep`` reads everything."""
    moved = doctor.fix(registry, deep, command) if fix else []
    findings = doctor.check(registry, deep)
    if deep:
        findings += recompose(registry, progress)
    return Examination(findings, moved)


def recompose(registry: Registry, progress: Progress) -> list[Finding]:
    """I6: the weights of every branch's head, composed again, are those that were recorded."""
    from kswapctl.operations.versions import load_version

    heads = sorted({(m.name, n) for m in registry.models() for n in registry.branches(m.name).values()})
    progress.stage("composing heads", len(heads))
    findings = []
    for model, number in heads:
        try:
            load_version(registry, registry.resolve(f"{model}@{number or 'base'}"))
        except PurgedBlob:
            pass  # on purpose: its history says so
        except (KswapError, RegistryError) as error:
            findings.append(Finding("I6", f"{model}@{number or 'base'}", error.message))
        progress.advance()
    return findings


def parse_grace(text: str) -> timedelta:
    """``14d``, ``12h``, ``30m`` or ``0`` as a time."""
    found = re.fullmatch(r"(\d{1,6})([dhm]?)", text.strip(), re.ASCII)
    if not found or (not found[2] and int(found[1])):
        raise UsageError(f"{text!r} is no time", "write 14d, 12h, 30m or 0")
    return timedelta(**{_UNITS[found[2] or "d"]: int(found[1])})


def backup(registry: Registry, target: Path, overwrite: bool = False) -> Path:
    """Copy the registry as it is now, while it may be in use: into a new folder, or one ``.tar`` file."""
    outside(registry.folder, target)
    if target.suffix != ARCHIVE:
        if overwrite and target.exists():
            raise UsageError(
                f"{target} exists, and only a {ARCHIVE} file is overwritten", "remove it, or choose another name"
            )
        copies.backup(registry, target)
        return target
    check_free(target, overwrite)
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".backup-") as folder:
        copies.backup(registry, Path(folder) / "copy")
        with written_whole(target, overwrite) as temporary:
            temporary.touch(mode=0o600)  # it holds the registry's key
            with tarfile.open(temporary, "w") as archive:
                archive.add(Path(folder) / "copy", arcname=".")
    return target


def restore(source: Path, folder: Path) -> Registry:
    """Make ``folder`` a registry from a backup; nothing is there unless every blob of it proved sound."""
    if not source.exists():
        raise NotFoundError(f"no such backup: {source}", "name the folder or .tar that kswapctl backup wrote")
    if not source.is_file():
        return copies.restore(source, folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".restore-") as scratch:
        _unpack(source, Path(scratch))
        return copies.restore(Path(scratch), folder)


def _unpack(source: Path, scratch: Path) -> None:
    try:
        with tarfile.open(source, "r:") as archive:  # never a compressed one: that could be a bomb
            for member in _checked(archive):
                archive.extract(member, scratch, filter="data")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise IntegrityError(f"{source} is no whole backup ({error})", "use another copy") from error


def _checked(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        name = member.name.removeprefix("./")
        if name == ".":
            continue
        if not (member.isreg() or member.isdir()) or not _MEMBER.fullmatch(name):
            raise UnsafeInputError(f"a backup holds no {member.name[:80]!r}", "it was not made by kswapctl backup")
        yield member
