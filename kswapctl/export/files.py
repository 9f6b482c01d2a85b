"""Where output goes: a file whole or not at all, to a temporary name beside it, checked, then renamed; or a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from kswapctl.errors import DiskError, UsageError


@contextlib.contextmanager
def written_whole(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success it takes ``target``'s name, on any error it is removed."""
    check_free(target, overwrite)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise DiskError(
            f"cannot write {target}: {error.strerror or error}", "free some space, or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_free(target: Path, overwrite: bool) -> None:
    """Refuse a folder, a link, or an existing file that was not to be overwritten."""
    if target.is_symlink() or target.is_dir():
        raise UsageError(f"{target} is a {'link' if target.is_symlink() else 'folder'}", "name a file with --output")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists", "say --overwrite, or choose another name")
    if not target.parent.is_dir():
        raise UsageError(f"no folder {target.parent}", "make it first")


def made_folder(folder: Path) -> Path:
    """``folder``, made where it is missing; refused where a file is in its place."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make {folder}: {error.strerror}", "choose another place") from error
    return folder
