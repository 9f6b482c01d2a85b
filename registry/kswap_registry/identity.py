"""Who is at work: the user, and the process in a form that tells a living one from a dead one."""

from __future__ import annotations

import getpass
import os
import platform
from pathlib import Path


def user() -> str:
    """The name of the user, or the number where the machine knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return f"uid {os.getuid()}"


def process() -> str:
    """The calling process as ``host:pid:start``; the start time tells it from a later one with its number."""
    return f"{platform.node()}:{os.getpid()}:{_started(os.getpid())}"


def lives(owner: str) -> bool:
    """Whether ``owner`` (see :func:`process`) is a process of this machine that still runs."""
    host, pid, started = owner.rsplit(":", 2)
    return host == platform.node() and started != "" and _started(int(pid)) == started


def lives_elsewhere(owner: str) -> bool:
    """Whether ``owner`` still runs and is not the calling process."""
    return owner != process() and lives(owner)


def _started(pid: int) -> str:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return fields[19]  # field 22 of proc(5), counted after the command's name
