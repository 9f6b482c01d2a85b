"""Where and how tensors are computed: device, precision, seed, and the guard around torch's first import."""

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import torch

from kswapctl.errors import UsageError


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
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


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
