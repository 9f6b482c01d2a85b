"""What kind of disk a folder lies on, as far as the kernel tells, and how much room it has."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import StorageFull, storage_errors

_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "gpfs",
    "beegfs",
}
_MOUNTS = Path("/proc/self/mounts")


def network_kind(folder: Path) -> str:
    """The kind of network disk ``folder`` lies on; empty for a local one, or where nobody knows."""
    try:
        mounts = [line.split() for line in os.fsdecode(_MOUNTS.read_bytes()).splitlines()]
    except OSError:
        return ""
    place = folder.resolve()
    holding = [(fields[1], fields[2]) for fields in mounts if place.is_relative_to(_unescaped(fields[1]))]
    _, kind = max(holding, key=lambda mount: len(mount[0]), default=("", ""))
    return kind if kind in _NETWORK or kind.startswith("fuse.ssh") else ""


def require_space(folder: Path, needed: int, way: str = "or choose another place") -> None:
    """Refuse to begin what ``needed`` bytes of disk will not be there for; ``way`` is how to come by more."""
    with storage_errors(folder):
        status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        missing = (needed - free) / 1e6
        raise StorageFull(
            f"{needed / 1e6:.1f} MB are needed in {folder}, {free / 1e6:.1f} MB are free",
            f"free at least {missing:.1f} MB, {way}",
        )


def _unescaped(place: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), place)  # a space is written as \\040
