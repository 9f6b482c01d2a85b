"""Where activations of frozen blocks are kept: in memory, or in memory-mapped files that outlive the operation.

A file's name is the hash of everything its content depends on, so that the next operation on the same version and the
same views (another method) finds it and computes nothing.
"""

from __future__ import annotations

import hashlib
import math
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kswapctl.errors import DiskError

GIB = 2**30


@dataclass
class Cache:
    """Room for activations, in bytes; what does not fit is computed again in each step."""

    budget: int
    """Most bytes, of this operation in memory, or of all files in ``folder``."""
    folder: Path | None = None
    """Where files are kept; none keeps activations in memory for this operation only."""
    used: int = field(default=0, init=False)
    """Bytes handed out to this operation."""

    @property
    def left(self) -> int:
        """Bytes of memory for a step: a quarter of those not handed out (files take none), a quarter of a GiB at least.

        Its gradients, passing tensors and what the allocator does not give back take more than as much again.
        """
        return max((self.budget - (self.used if self.folder is None else 0)) // 4, GIB // 4)

    def allocate(self, key: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """An uninitialised tensor to be filled, in memory or in a file; None where there is no room for it."""
        size = math.prod(shape) * dtype.itemsize
        if self.used + size > self.budget:
            return None
        self.used += size
        if self.folder is None:
            return torch.empty(shape, dtype=dtype, device=device)
        self._make_room(size)
        self._take(self._file(key), size)
        return self._map(key, shape, dtype)

    def recall(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]] | None:
        """What :meth:`keep` completed under ``key``: the mapped activations, and the small tensors beside them."""
        size = math.prod(shape) * dtype.itemsize
        if self.folder is None or not (done := self._done(key)).exists() or not self._is_whole(key, size):
            return None
        for file in (done, self._file(key)):
            os.utime(file)
        self.used += size
        return self._map(key, shape, dtype), load_file(done)

    def keep(self, key: str, beside: dict[str, Tensor]) -> None:
        """Mark what was allocated under ``key`` as complete, with small tensors that belong to it.

        Nothing is marked where another process has made room of it meanwhile. What is marked lies on the disk: a file
        has its full size from its first moment, so that after a power cut nothing else would tell it from zeros.
        """
        if self.folder is None or not self._file(key).exists():
            return
        done = self._done(key)
        partial = done.with_suffix(f".{os.getpid()}")
        save_file({name: t.contiguous().cpu() for name, t in beside.items()}, partial)
        for file in (self._file(key), partial):
            with suppress(FileNotFoundError), file.open("rb") as written:
                os.fsync(written.fileno())
        partial.replace(done)

    def _take(self, file: Path, size: int) -> None:
        """Have the disk reserve the file's room: written through a map into a full one, the process would be killed."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a+b") as taken:
                if hasattr(os, "posix_fallocate"):  # not on every system
                    os.posix_fallocate(taken.fileno(), 0, max(size, 1))
        except OSError as error:
            file.unlink(missing_ok=True)
            raise DiskError(
                f"{file.parent} cannot take {size / 1e6:.0f} MB of activations ({error.strerror})",
                "free some, name another --cache-dir, or leave it out: then they are kept in memory",
            ) from error

    def _map(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        file = str(self._file(key))
        return torch.from_file(file, shared=True, size=math.prod(shape), dtype=dtype).view(shape)

    def _make_room(self, size: int) -> None:
        """Remove the files used longest ago until ``size`` more bytes fit."""
        assert self.folder is not None
        files = []
        for file in self.folder.glob("*.activations"):
            with suppress(FileNotFoundError):  # another process makes room too
                files.append((file.stat().st_mtime, file.stat().st_size, file))
        total = sum(taken for _, taken, _ in files)
        for _, taken, file in sorted(files):
            if total + size <= self.budget:
                break
            total -= taken
            file.with_suffix(".safetensors").unlink(missing_ok=True)
            file.unlink(missing_ok=True)

    def _is_whole(self, key: str, size: int) -> bool:
        """Whether the activations are still there: another process may have made room of them."""
        file = self._file(key)
        return file.exists() and file.stat().st_size == size

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.activations"

    def _done(self, key: str) -> Path:
        return self._file(key).with_suffix(".safetensors")


def key_of(*parts: str | Tensor) -> str:
    """SHA-256 over text and tensors."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        digest.update(b"\0")
    return digest.hexdigest()
