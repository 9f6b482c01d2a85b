"""Where output goes: a file whole or not at all, in a temporary folder beside it, checked, then moved; or a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from kswapctl.errors import DiskError, NotFoundError, UsageError


@contextlib.contextmanager
def written_whole(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path of ``target``'s name in a temporary folder beside it; on any error that folder is removed.

    On success what lies in the folder moves to where ``target`` belongs, last ``target`` itself.
    """
    check_free(target, overwrite)
    try:
        folder = TemporaryDirectory(
            prefix=f".{target.name}.", suffix=".part", dir=target.absolute().parent, ignore_cleanup_errors=True
        )
        with folder as place:
            yield Path(place) / target.name
            _move(Path(place), target, overwrite)
    except OSError as error:
        raise DiskError(
            f"cannot write {target}: {error.strerror or error}", "free some space, or choose another place"
        ) from error


def _move(folder: Path, target: Path, overwrite: bool) -> None:
    made = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
    for file in made:
        check_free(target.with_name(file.name), overwrite)
        with file.open("rb") as written:
            os.fsync(written.fileno())
    if len(made) > 1:  # no file is better than an old one beside what belongs to the new
        target.unlink(missing_ok=True)
    for file in made:
        file.replace(target.with_name(file.name))


def check_free(target: Path, overwrite: bool) -> None:
    """Refuse a folder, a link, or an existing file that was not to be overwritten."""
    if target.is_symlink() or target.is_dir():
        raise UsageError(f"{target} is a {'link' if target.is_symlink() else 'folder'}", "name a file with --output")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists", "say --overwrite, or choose another name")
    if not target.parent.is_dir():
        raise UsageError(f"no folder {target.parent}", "make it first")


def require_file(file: Path, hint: str = "") -> None:
    """Refuse what is no file: a folder, or nothing."""
    if file.is_dir():
        raise UsageError(f"{file} is a folder", hint or "name a file")
    if not file.is_file():
        raise NotFoundError(f"no such file: {file}", hint)


def made_folder(folder: Path) -> Path:
    """``folder``, made where it is missing; refused where a file is in its place."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make {folder}: {error.strerror}", "choose another place") from error
    return folder


def outside(registry: Path, output: Path) -> None:
    """Refuse to write into the registry's folder."""
    if registry.resolve() in (output.resolve(), *output.resolve().parents):
        raise UsageError(f"{output} is inside the registry", "choose another place")
