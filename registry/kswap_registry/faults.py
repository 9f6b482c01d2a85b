"""Named points in every writing path, where a test can kill, fail or interrupt the process.

In use a point does nothing. ``KSWAPCTL_FAULT="blob.after_rename:kill"`` arms one; tests enumerate
``POINTS``.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable

VARIABLE = "KSWAPCTL_FAULT"
"""The environment variable that arms a point: ``name:mode``."""

POINTS: dict[str, str] = {}
"""Every point by name, with what has happened when it is reached."""


def declare(points: dict[str, str]) -> None:
    """Make points known, so that the fault tests cover them."""
    POINTS.update(points)


def point(name: str) -> None:
    """Do nothing, unless this point is the armed one."""
    assert name in POINTS, f"fault point {name!r} is not declared"
    armed, _, mode = os.environ.get(VARIABLE, "").partition(":")
    if armed == name:
        MODES[mode]()


def _fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


MODES: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "enospc": lambda: _fail(errno.ENOSPC),
    "eio": lambda: _fail(errno.EIO),
    "sigint": lambda: signal.raise_signal(signal.SIGINT),
    "sleep": lambda: time.sleep(2.0),
}
"""What an armed point can do."""

declare(
    {
        "create.after_folders": "the folders are there, nothing else",
        "create.after_key": "the key is there, the database is not",
        "create.before_publish": "the database is built under a temporary name",
        "create.after_publish": "the database has its name",
        "blob.after_copy": "a file is copied to tmp/, not synced",
        "blob.after_sync": "the copy is on disk",
        "blob.after_verify": "the copy was read back and its hash agrees",
        "blob.after_rename": "the copy has its name in blobs/, the folder is not synced",
        "blob.after_folder_sync": "the blob is there for good",
        "add.before_rows": "all blobs of a new model are stored",
        "add.after_rows": "rows are written, not committed",
        "add.after_commit": "the model is registered",
        "operation.after_begin": "the running row is committed",
        "operation.after_stand": "the operation stands on another version than the head",
        "operation.before_close": "the operation ended without a commit; its scratch folder is gone",
        "adopt.before_rows": "all blobs that arrived from elsewhere are stored",
        "adopt.after_model": "the new model's rows are written, not committed",
        "adopt.after_one": "one version that arrived is written, not committed",
        "adopt.after_commit": "all that arrived is registered",
        "commit.before_rows": "all blobs of a version are stored",
        "commit.after_rows": "the version's rows are written, not committed",
        "commit.after_head": "the head has moved, not committed",
        "commit.after_history": "the history row is written, not committed",
        "commit.after_commit": "the version is registered",
        "head.after_move": "the head has moved, not committed",
        "head.after_history": "the move is in the history, not committed",
        "head.after_commit": "the move is committed",
        "tag.after_row": "the tag is written, not committed",
        "tag.after_commit": "the tag is committed",
        "branch.after_row": "the branch is written, not committed",
        "branch.after_commit": "the branch is committed",
        "record.after_history": "the entry is written, not committed",
        "record.after_commit": "the entry is committed",
        "fix.after_history": "the moves into quarantine are announced",
        "fix.after_one": "one file is in quarantine",
        "gc.after_scratch": "one scratch file is removed",
        "gc.after_history": "the removal of blobs is announced",
        "gc.after_one": "one blob is removed",
        "purge.after_history": "what goes is announced",
        "purge.after_one": "one purged file is removed",
        "purge.after_remain": "one left-over file is removed",
        "copy.after_database": "the database is copied",
        "copy.after_blobs": "the blobs are copied",
        "copy.before_publish": "the copy proved sound under a temporary name",
        "copy.after_publish": "the copy has its name",
        "migrate.after_backup": "a copy of the old database is kept",
        "migrate.after_steps": "the schema is changed, not committed",
        "migrate.after_commit": "the new schema is committed",
    }
)
