"""Pieces of work that are done once, whoever does them: a claim is a kernel lock, which a killed process cannot keep.

Processes of one machine, and of others that share the folder (its file system must carry locks: local disks, NFS 4,
Lustre with ``flock``), take what nobody has taken. There is no server, no heartbeat, and no claim to clean up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kswap_registry import Busy
from kswap_registry.lock import WriterLock


@contextmanager
def claimed(folder: Path, key: str) -> Iterator[bool]:
    """Whether this process now holds the claim on ``key``; it is given back at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(folder / f"{key}.lock", 0.0, None)
    try:
        lock.acquire(f"claims {key}")
    except Busy:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def work_off(folder: Path, keys: Sequence[str], work: Callable[[str], dict[str, Any]]) -> int:
    """Do what is neither done nor claimed, until nothing is left; returns how many pieces were done here.

    A result is the file ``results/KEY.json``, written whole or not at all.
    """
    done = 0
    while True:
        before = done
        for key in keys:
            if result_file(folder, key).is_file():
                continue
            with claimed(folder / "claims", key) as mine:
                if not mine or result_file(folder, key).is_file():
                    continue
                write_result(folder, key, work(key))
                done += 1
        if done == before:
            return done


def result_file(folder: Path, key: str) -> Path:
    """Where the result of ``key`` is, once it is done."""
    return folder / "results" / f"{key}.json"


def write_result(folder: Path, key: str, value: dict[str, Any]) -> None:
    """Write the result of the cell called ``key``."""
    write_synced(result_file(folder, key), value)


def write_synced(file: Path, value: dict[str, Any]) -> None:
    """Write JSON so that it is there whole, or not at all, also after a power cut."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
