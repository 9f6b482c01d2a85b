"""Where and how tensors are computed: device, precision, seed, and the guard around torch's first import."""

import contextlib
import ctypes
import functools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from kswapctl.errors import UsageError

Part = TypeVar("Part")
Result = TypeVar("Result")


def pick_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one, each process of torchrun its own.

    An unknown or absent device is a :class:`UsageError`.
    """
    if name == "auto" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used here", "use --device cpu, or auto") from error
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of training steps: ``auto`` takes bf16 where the hardware multiplies it natively.

    Decided by capability, not by timing, so that two runs on one machine decide alike.
    """
    if name == "fp32":
        return torch.float32
    if name == "bf16":
        return torch.bfloat16
    if name != "auto":
        raise UsageError(f"unknown precision {name!r}", "use auto, fp32 or bf16")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes on ``count`` cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def one_core_each() -> Iterator[None]:
    """Inside, torch computes on one core a thread, and :func:`spread` uses as many threads as torch had cores.

    On the sizes of a batch this is faster than one thread on all cores: its many small steps gain nothing from a second
    core, and wait for it.
    """
    token = _cores.set(cores())
    try:
        with threads(1):
            yield
    finally:
        _cores.reset(token)


def cores() -> int:
    """Threads that :func:`spread` uses at most."""
    return _cores.get() or torch.get_num_threads()


def spread(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``work`` on each part, in order, on several threads at once; what is over of the cores is shared among them.

    Gradient mode and autocast are a thread's own: ``work`` sets them.
    """
    threads = min(cores(), len(parts))
    if threads < 2:
        return [work(part) for part in parts]
    return list(_workers(threads, cores() // threads).map(work, parts))


def hand_back() -> None:
    """Give freed memory back to the system, where the C library would keep it (glibc, after many tensors)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_cores: ContextVar[int] = ContextVar("cores", default=0)


@functools.cache
def _workers(count: int, cores_each: int) -> ThreadPoolExecutor:
    before = torch.get_num_threads()
    workers = ThreadPoolExecutor(count, "kswapctl", initializer=torch.set_num_threads, initargs=(cores_each,))
    list(workers.map(lambda _: time.sleep(0.01), range(count)))  # all of them begin now
    torch.set_num_threads(before)
    return workers


def seed_everything(seed: int) -> torch.Generator:
    """Seed torch and Python, and return a generator for the order of batches."""
    random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Inside, operations that could differ between runs raise instead (torch's deterministic mode)."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    filling = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filling
