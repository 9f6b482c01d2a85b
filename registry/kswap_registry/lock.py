"""One writer at a time: a kernel lock on a file, which a dead process cannot keep.

The file also says who holds it, for people to read; the lock itself is the kernel's.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from . import clock
from .errors import Busy, storage_errors

_held: set[int] = set()


@dataclass(frozen=True)
class Holder:
    """Who holds the lock, as far as the file tells."""

    process: int | None = None
    command: str = ""
    since: str = ""

    def __str__(self) -> str:
        if self.process is None:
            return "another process"
        age = max(0, round(clock.seconds_since(self.since)))
        return f"process {self.process} ({self.command or 'no command given'}), for {age} s"


class WriterLock:
    """The right to write, taken by the first caller and given back by the last (it nests)."""

    def __init__(self, path: Path, timeout: float, on_wait: Callable[[Holder], None] | None) -> None:
        self._path = path
        self._timeout = timeout
        self._on_wait = on_wait
        self._descriptor: int | None = None
        self._depth = 0

    def acquire(self, command: str) -> bool:
        """Wait politely for the lock, at most the timeout; True when it was not ours already."""
        self._depth += 1
        if self._depth > 1:
            return False
        try:
            self._descriptor = self._wait()
            _held.add(self._descriptor)
            _sign(self._descriptor, command)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Give the lock back, when this was the outermost caller."""
        self._depth -= 1
        if self._depth > 0 or self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        _held.discard(descriptor)
        with suppress(OSError):  # a full disk must not keep us from letting go
            os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def holder(self) -> Holder:
        """Who wrote their name into the file."""
        try:
            written = json.loads(self._path.read_text())
            return Holder(int(written["process"]), str(written["command"]), str(written["since"]))
        except (OSError, ValueError, KeyError, TypeError):  # being written just now, or never
            return Holder()

    def _wait(self) -> int:
        deadline = time.monotonic() + self._timeout
        pause, told = 0.01, False
        while (descriptor := self._try()) is None:
            if not told and self._on_wait is not None:
                self._on_wait(self.holder())
            told = True
            left = deadline - time.monotonic()
            if left <= 0:
                raise Busy(f"the registry is in use by {self.holder()}", "wait for it to end, then try again")
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.2)
        return descriptor

    def _try(self) -> int | None:
        with storage_errors(self._path.parent), ExitStack() as undo:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            undo.callback(os.close, descriptor)
            if not self._is_locked(descriptor):
                return None
            undo.pop_all()
            return descriptor

    def _is_locked(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # somebody may have removed the file we had opened: then we locked nothing
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except (BlockingIOError, FileNotFoundError):
            return False


def _sign(descriptor: int, command: str) -> None:
    name = {"process": os.getpid(), "command": command, "since": clock.stamp()}
    with suppress(OSError):  # only a courtesy: a rollback must work on a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(name).encode(), 0)


def _close_in_child() -> None:
    # A forked data loader would otherwise keep the lock after its parent is killed.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
