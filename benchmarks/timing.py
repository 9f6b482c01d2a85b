"""What the benchmarks of speed share: interleaved runs, medians and spread, a workbench without a registry."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from kswapctl.models.blocks import choose_blocks, find_blocks
from kswapctl.models.heads import classifier_path
from kswapctl.models.lora import Shape
from kswapctl.training.subject import Subject

Work = Callable[[], object]


def interleave(works: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, once a round in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: list[float]) -> str:
    """Median with the lowest and highest, in milliseconds below one second."""
    unit, factor = ("ms", 1e3) if statistics.median(values) < 1 else ("s", 1.0)
    low, middle, high = (f"{factor * f(values):.4g}" for f in (min, statistics.median, max))
    return f"{middle} {unit} ({low} to {high})"


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times ``fast`` fits into ``slow``, by medians."""
    return statistics.median(slow) / statistics.median(fast)


def subject_of(model: torch.nn.Module, blocks: str, dtype: torch.dtype, rank: int = 16) -> Subject:
    """``model`` made ready for training on ``blocks``."""
    every = find_blocks(model, classifier_path(model))
    chosen = every if blocks == "all" else choose_blocks(every, blocks)
    return Subject.prepare(model, every, chosen, Shape(rank, 1.0), dtype)


@torch.no_grad()
def activations_of(subject: Subject, images: torch.Tensor) -> torch.Tensor:
    """``images`` as they reach the first trained block."""
    with subject.autocast():
        return subject.below(images).to(subject.dtype)


def take_step(subject: Subject, activations: torch.Tensor) -> None:
    """Forward and backward of the trained part over one batch."""
    for group in subject.groups.values():
        for parameter in group:
            parameter.grad = None
    subject.forward(activations)[1].square().mean().backward()


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": device, "torch": torch.__version__}


def keep(found: object, file: Path | None) -> None:
    """Write JSON, if asked to."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"machine": machine(), "found": found}, indent=2) + "\n")
